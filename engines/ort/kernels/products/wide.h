/* A tile's vectors, which have a lane for each of its rows, and products that are summed in 32 bits.
 *
 * A source that is compiled for VNNI defines MEGREZ_VNNI, and for AVX-512 too MEGREZ_AVX512.
 */
#ifndef MEGREZ_WIDE_H
#define MEGREZ_WIDE_H

#include "avx2.h"

#ifdef MEGREZ_HAS_AVX2

#ifdef MEGREZ_AVX512
#define WIDE(operation) _mm512_##operation
typedef __m512i wide;
typedef __m512 wide_float;
#define ADD_PRODUCTS _mm512_dpbusd_epi32
#else
#define WIDE(operation) _mm256_##operation
typedef __m256i wide;
typedef __m256 wide_float;
#define ADD_PRODUCTS _mm256_dpbusd_avx_epi32
#endif

enum {
    LANES = sizeof(wide) / 4,
    ROWS = 16,              /* of a tile */
    VECTORS = ROWS / LANES, /* of rows: each input that is loaded is used for all of them */
    GROUP = 2 * sizeof(wide) /* inputs of 4-bit codes of which the even ones come first: see megrez_group */
};

KERNEL wide load_wide(const void *from) {
    wide found;
    __builtin_memcpy(&found, from, sizeof found);
    return found;
}

#endif
#endif
