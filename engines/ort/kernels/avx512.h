/* Included first by sources that are compiled for AVX-512 and its VNNI. */
#ifndef MEGREZ_AVX512_H
#define MEGREZ_AVX512_H

#define MEGREZ_INSTRUCTIONS "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#define MEGREZ_VNNI
#define MEGREZ_AVX512

#include "avx2.h"

#ifdef MEGREZ_HAS_AVX2

/* Sums of neighbours: of each 128 bits, a's two and b's two in turn. */
KERNEL __m512i integer_pairs(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
}

/* Each 128 bits have one sum of each of the four, of its 128 bits there. */
KERNEL __m512i integer_fours(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i first = integer_pairs(a, b), second = integer_pairs(c, d);
    return _mm512_add_epi32(_mm512_unpacklo_epi64(first, second), _mm512_unpackhi_epi64(first, second));
}

#endif

#endif
