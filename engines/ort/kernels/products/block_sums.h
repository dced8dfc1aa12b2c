/* Integer sums of a row's blocks times up to four inputs, eight blocks at once. */
#ifndef MEGREZ_BLOCK_SUMS_H
#define MEGREZ_BLOCK_SUMS_H

#include "wide.h"

#ifdef MEGREZ_HAS_AVX2

#include <stdint.h>

enum {
    STREAMED = 4,         /* inputs at once: as many as the registers hold */
    WIDTH = sizeof(wide), /* bytes of a vector */
};

/* The lower halves of a vector's bytes and, in `upper`, the upper ones. */
KERNEL wide halves(wide packed, wide *upper) {
    const wide half = WIDE(set1_epi8)(15);
    *upper = (wide)(WIDE(srli_epi16)(packed, 4) & half);
    return (wide)(packed & half);
}

#ifdef MEGREZ_VNNI

/* A vector of codes times each input; lower, upper: sums of 32 bits, of the halves of 4-bit codes. */
KERNEL void add_vector(wide packed, const int bits, const int count, int64_t stride, const int8_t *inputs, wide *lower,
                       wide *upper) {
    wide high;
    const wide low = halves(packed, &high);
    UNROLLED
    for (int i = 0; i < count; i++, inputs += stride) {
        lower[i] = ADD_PRODUCTS(lower[i], bits == 4 ? low : packed, load_wide(inputs));
        if (bits == 4) upper[i] = ADD_PRODUCTS(upper[i], high, load_wide(inputs + WIDTH));
    }
}

KERNEL wide joined(wide lower, wide upper, const int bits) {
    return bits == 4 ? WIDE(add_epi32)(lower, upper) : lower;
}

#else

/* A vector of codes times each input; lower, upper: sums of 16 bits, of 8-bit codes those of the halves. */
KERNEL void add_vector(wide packed, const int bits, const int count, int64_t stride, const int8_t *inputs, wide *lower,
                       wide *upper) {
    wide high;
    const wide low = halves(packed, &high);
    UNROLLED
    for (int i = 0; i < count; i++, inputs += stride) {
        const wide first = _mm256_maddubs_epi16(low, load(inputs));
        const wide second = _mm256_maddubs_epi16(high, load(bits == 4 ? inputs + WIDTH : inputs));
        if (bits == 4) lower[i] = _mm256_add_epi16(lower[i], _mm256_add_epi16(first, second));
        else lower[i] = _mm256_add_epi16(lower[i], first), upper[i] = _mm256_add_epi16(upper[i], second);
        KEPT(lower[i]);
    }
}

KERNEL wide joined(wide lower, wide upper, const int bits) {
    const wide found = _mm256_madd_epi16(lower, _mm256_set1_epi16(1));
    return bits == 4 ? found : _mm256_add_epi32(found, _mm256_madd_epi16(upper, _mm256_set1_epi16(16)));
}

#endif

/* Sums of one vector of blocks, which one block fills or several share: 32-bit parts of them, in found[i]. */
KERNEL void block_sums(const uint8_t *codes, const int bits, const int vectors, const int count, int64_t stride,
                       const int8_t *inputs, wide *found) {
    const int values = WIDTH * 8 / bits;
    wide lower[STREAMED], upper[STREAMED];
    UNROLLED
    for (int i = 0; i < count; i++) lower[i] = upper[i] = (wide){0};
    if (count == 1 && vectors <= 2) { /* short loops: bound by their overhead */
        UNROLLED
        for (int v = 0; v < vectors; v++, codes += WIDTH, inputs += values)
            add_vector(load_wide(codes), bits, count, stride, inputs, lower, upper);
    } else {
        ROLLED
        for (int v = 0; v < vectors; v++, codes += WIDTH, inputs += values)
            add_vector(load_wide(codes), bits, count, stride, inputs, lower, upper);
    }
    UNROLLED
    for (int i = 0; i < count; i++) found[i] = joined(lower[i], upper[i], bits);
}

#ifdef MEGREZ_AVX512

KERNEL __m512i fours(const wide (*v)[STREAMED], int i) { return integer_fours(v[0][i], v[1][i], v[2][i], v[3][i]); }

KERNEL __m256i folded(__m512i sums) {
    return _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
}

/* The sums of eight blocks in order, of which `left` exist, from 8 / shared vectors that `shared` blocks each share. */
KERNEL __m256i eight_sums(const wide (*v)[STREAMED], int i, const int shared, int64_t left) {
    if (shared == 8) {
        const __m512i sums = _mm512_add_epi32(v[0][i], _mm512_srli_epi64(v[0][i], 32));
        return _mm512_cvtepi64_epi32(sums);
    }
    if (shared == 4) {
        const __m512i two = integer_pairs(v[0][i], v[1][i]);
        const __m512i sums = _mm512_add_epi32(two, _mm512_shuffle_epi32(two, 0x4e));
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0);
        return _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, sums));
    }
    if (shared == 2) {
        const __m512i four = fours(v, i), sums = _mm512_add_epi32(four, _mm512_shuffle_i64x2(four, four, 0xb1));
        const __m512i order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 0, 0, 0, 0, 0, 0, 0, 0);
        return _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, sums));
    }
    const __m256i lower = folded(fours(v, i));
    if (left <= 4)
        return _mm256_zextsi128_si256(_mm_add_epi32(_mm256_castsi256_si128(lower), _mm256_extracti128_si256(lower, 1)));
    const __m256i upper = folded(fours(v + 4, i));
    return add_halves(lower, upper);
}

#else

/* The sums of eight blocks in order, of which `left` exist, from 8 / shared vectors that `shared` blocks each share. */
KERNEL __m256i eight_sums(const wide (*v)[STREAMED], int i, const int shared, int64_t left) {
    if (shared == 4) return _mm256_permute4x64_epi64(_mm256_hadd_epi32(v[0][i], v[1][i]), 0xd8);
    const __m256i lower = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0][i], v[1][i]), _mm256_hadd_epi32(v[2][i], v[3][i]));
    if (shared == 2) return _mm256_permutevar8x32_epi32(lower, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    if (left <= 4)
        return _mm256_zextsi128_si256(_mm_add_epi32(_mm256_castsi256_si128(lower), _mm256_extracti128_si256(lower, 1)));
    const __m256i upper = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4][i], v[5][i]), _mm256_hadd_epi32(v[6][i], v[7][i]));
    return add_halves(lower, upper);
}

#endif

#endif
#endif
