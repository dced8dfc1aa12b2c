/* A tile of a quantised matrix: some columns of 16 rows, transposed so that a vector holds rows.
 *
 * A lane then belongs to one output: nothing is summed across lanes, and small blocks cost little more than large ones.
 */
#ifndef MEGREZ_WEIGHTS_TILE_H
#define MEGREZ_WEIGHTS_TILE_H

#include "products.h"
#include "wide.h"

#ifdef MEGREZ_HAS_AVX2

#include <string.h>

enum {
    WORDS = MEGREZ_WORDS, /* of 32 bits of each row */
    BLOCKS = WORDS / 2,   /* at most: the shortest have 16 codes of 4 bits */
    BEYOND = 3,           /* rows after a tile's, of which bytes may be read */
};

/* Whether the bytes of a code are split into halves: VNNI multiplies whole ones. */
KERNEL bool halved(const int bits) {
#ifdef MEGREZ_VNNI
    return bits == 4;
#else
    return (void)bits, true;
#endif
}

/* codes: bytes below 16, of each word first the lower halves of its bytes, then the upper ones; or whole bytes. shifts:
 * of a block, its scale times its zero point.
 */
typedef struct {
    wide codes[WORDS][2][VECTORS];
    wide_float scales[BLOCKS][VECTORS], shifts[BLOCKS][VECTORS];
} weights_tile;

/* Where 16 rows are in memory; points is NULL if there are none. Strides in bytes. */
typedef struct {
    const uint8_t *codes, *scales, *points;
    int64_t codes_stride, scales_stride, points_stride;
} tile_source;

/* Where the same columns of the next 16 rows are, fetched while this tile is unpacked; each may be NULL. */
typedef struct {
    const char *codes, *scales, *points;
} next_rows;

/* A copy of the matrix's last rows. 16 bytes are read from all others where less is left of a row: of the shortest,
 * which have one scale each, that reaches BEYOND rows further.
 */
typedef struct {
    uint8_t codes[ROWS][4 * WORDS], scales[ROWS][4 * BLOCKS], points[ROWS][BLOCKS + 4];
} last_rows;

/* Four words of each of 8 rows: found[n] has word n of all rows. */
KERNEL void transpose_eight(const uint8_t *rows, int64_t stride, __m256i *found) {
    __m256i pairs[4];
    UNROLLED
    for (int n = 0; n < 4; n++)
        pairs[n] = _mm256_loadu2_m128i((const __m128i *)(rows + (n + 4) * stride), (const __m128i *)(rows + n * stride));
    const __m256i a = _mm256_unpacklo_epi32(pairs[0], pairs[1]), b = _mm256_unpacklo_epi32(pairs[2], pairs[3]);
    const __m256i c = _mm256_unpackhi_epi32(pairs[0], pairs[1]), d = _mm256_unpackhi_epi32(pairs[2], pairs[3]);
    found[0] = _mm256_unpacklo_epi64(a, b), found[1] = _mm256_unpackhi_epi64(a, b);
    found[2] = _mm256_unpacklo_epi64(c, d), found[3] = _mm256_unpackhi_epi64(c, d);
}

/* Four words of the rows of a vector. */
KERNEL void transpose(const uint8_t *rows, int64_t stride, wide *found) {
#ifdef MEGREZ_AVX512
    __m256i first[4], second[4];
    transpose_eight(rows, stride, first);
    transpose_eight(rows + 8 * stride, stride, second);
    UNROLLED
    for (int n = 0; n < 4; n++) found[n] = _mm512_inserti64x4(_mm512_castsi256_si512(first[n]), second[n], 1);
#else
    transpose_eight(rows, stride, found);
#endif
}

KERNEL void fetch(const char *from, int lines) {
    for (int line = 0; from && line < lines; line++) _mm_prefetch(from + 64 * line, _MM_HINT_T0);
}

/* Fetches the first half of the next rows' codes. */
KERNEL void unpack_codes(const tile_source *of, const int bits, int64_t words, const char *next, weights_tile *tile) {
    const wide half = WIDE(set1_epi8)(15);
    for (int64_t w = 0; w < words; w += 4) {
        fetch(next ? next + 32 * w : NULL, 2);
        UNROLLED
        for (int v = 0; v < VECTORS; v++) {
            wide four[4];
            transpose(of->codes + v * LANES * of->codes_stride + 4 * w, of->codes_stride, four);
            UNROLLED
            for (int n = 0; n < 4; n++) {
                tile->codes[w + n][0][v] = halved(bits) ? (wide)(four[n] & half) : four[n];
                if (halved(bits)) tile->codes[w + n][1][v] = (wide)(WIDE(srli_epi16)(four[n], 4) & half);
            }
        }
    }
}

/* At least four zero points of the rows of a vector, packed: a word of each. */
KERNEL wide packed_points(const uint8_t *rows, int64_t stride) {
    wide found;
    UNROLLED
    for (int r = 0; r < LANES; r++) memcpy((int32_t *)&found + r, rows + r * stride, sizeof(int32_t));
    return found;
}

KERNEL void unpack_scales(const tile_source *of, const int bits, int64_t blocks, const next_rows *next,
                          weights_tile *tile) {
    for (int64_t n = 0; n < blocks; n += 4) {
        fetch(next->scales ? next->scales + n * 4 * ROWS : NULL, 4);
        fetch(next->points ? next->points + n * bits / 8 * ROWS : NULL, bits / 4);
        UNROLLED
        for (int v = 0; v < VECTORS; v++) {
            wide four[4], point = WIDE(set1_epi32)(bits == 4 ? 8 : 128), packed = point;
            transpose(of->scales + v * LANES * of->scales_stride + 4 * n, of->scales_stride, four);
            if (of->points)
                packed = packed_points(of->points + v * LANES * of->points_stride + n * bits / 8, of->points_stride);
            UNROLLED
            for (int m = 0; m < 4; m++) {
                if (of->points) point = (wide)(WIDE(srli_epi32)(packed, m * bits) & WIDE(set1_epi32)((1 << bits) - 1));
                tile->scales[n + m][v] = (wide_float)four[m];
                tile->shifts[n + m][v] = WIDE(mul_ps)(tile->scales[n + m][v], WIDE(cvtepi32_ps)(point));
            }
        }
    }
}

KERNEL void copy_last_rows(tile_source *of, int64_t rows, size_t codes, size_t scales, size_t points, last_rows *to) {
    for (int64_t r = 0; r < ROWS; r++) {
        const int64_t from = r < rows ? r : rows - 1;
        memcpy(to->codes[r], of->codes + from * of->codes_stride, codes);
        memcpy(to->scales[r], of->scales + from * of->scales_stride, scales);
        if (of->points) memcpy(to->points[r], of->points + from * of->points_stride, points);
    }
    *of = (tile_source){to->codes[0], to->scales[0], of->points ? to->points[0] : NULL, sizeof to->codes[0],
                        sizeof to->scales[0], sizeof to->points[0]};
}

/* `blocks` blocks, from block `first` on, of the rows from `row` on; beyond the matrix's last row it is repeated. */
KERNEL void unpack_tile(const megrez_weights *weights, const int bits, const int words, int64_t row, int64_t first,
                        int64_t blocks, const next_rows *next, weights_tile *tile) {
    const int64_t all = weights->blocks, length = (all * bits + 7) / 8, rows = weights->rows - row;
    tile_source of = {
        .codes = weights->codes + (row * all + first) * words * 4, .codes_stride = all * words * 4,
        .scales = (const uint8_t *)(weights->scales + row * all + first), .scales_stride = all * 4,
        .points = weights->zero_points, .points_stride = length,
    };
    if (of.points) of.points += row * length + first * bits / 8;
    last_rows copy;
    if (rows < ROWS + BEYOND)
        copy_last_rows(&of, rows, (size_t)(blocks * words * 4), (size_t)(blocks * 4), (size_t)((blocks * bits + 7) / 8),
                       &copy);
    unpack_codes(&of, bits, blocks * words, next->codes, tile);
    unpack_scales(&of, bits, blocks, next, tile);
}

#endif
#endif
