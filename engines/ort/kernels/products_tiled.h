/* Rows of a quantised matrix times many inputs: 16 rows at a time are unpacked once for all of them. */
#ifndef MEGREZ_PRODUCTS_TILED_H
#define MEGREZ_PRODUCTS_TILED_H

#include "weights_tile.h"

#ifdef MEGREZ_HAS_AVX2

enum {
    TILED = 4,    /* inputs at once: with two vectors of rows, as many as the registers hold */
    CHUNK = 32,   /* inputs whose sums stay in the L1 cache, with the tile */
    FEW = 8,      /* inputs of short blocks up to which half of what is next is fetched while a tile is unpacked */
    SHORT = 16,   /* words: longer blocks are multiplied by few inputs without a tile, see products.c */
    SUMS = 8,     /* an output has, of blocks 8 apart: as in products_streamed.h, where they are a vector's lanes */
};

/* Some inputs' values for a tile's columns, and where their sums are. */
typedef struct {
    const int8_t *codes; /* at `stride` from input to input */
    int64_t stride, blocks, first;
    const float *scales, *sums; /* [inputs, blocks], from the tile's first block on */
    __m256 (*found)[SUMS][VECTORS];
    const char *next, *end; /* codes that are read later, of which `lines` cache lines are fetched for every step */
    int64_t lines;
} tile_inputs;

KERNEL __m256i four_codes(const int8_t *codes) {
    int32_t word;
    memcpy(&word, codes, sizeof word);
    return _mm256_set1_epi32(word);
}

/* The `n`th word of a tile's codes times the values of each input; sums: of 8-bit codes, of their halves. */
KERNEL void add_word(const __m256i (*codes)[VECTORS], const int bits, const int count, const int8_t *inputs,
                     int64_t stride, __m256i (*sums)[2][VECTORS]) {
    UNROLLED
    for (int half = 0; half < 2; half++)
        UNROLLED
        for (int i = 0; i < count; i++) {
            const __m256i input = four_codes(inputs + i * stride + (bits == 4 ? 32 * half : 0));
            UNROLLED
            for (int v = 0; v < VECTORS; v++) {
                __m256i *sum = &sums[i][bits == 4 ? 0 : half][v];
                *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(codes[half][v], input));
                KEPT(*sum);
            }
        }
}

/* A word's first value in an input: 4-bit codes have the even ones of 64 columns first. */
KERNEL int64_t place_of_word(const int bits, int64_t word) {
    return bits == 4 ? word / 8 * 64 + word % 8 * 4 : word * 4;
}

/* Words that are added up in 16 bits: a step. */
KERNEL int words_a_step(const int bits, const int words) {
    const int most = bits == 4 ? 4 : 8; /* sums of 16 bits are of 8 pairs */
    return words < most ? words : most;
}

/* The sums of a block that starts with the word `first`. */
KERNEL void add_block(const weights_tile *tile, int64_t first, const int bits, const int words, const int count,
                      const tile_inputs *of, __m256i (*found)[VECTORS]) {
    const int at_once = words_a_step(bits, words);
    ROLLED
    for (int w = 0; w < words; w += at_once) {
        for (int64_t line = (first + w) / at_once * of->lines, end = line + of->lines; line < end; line++)
            _mm_prefetch(of->next + line * 64, _MM_HINT_T0);
        __m256i sums[TILED][2][VECTORS];
        UNROLLED
        for (int i = 0; i < count; i++)
            UNROLLED
            for (int v = 0; v < VECTORS; v++) sums[i][0][v] = sums[i][1][v] = _mm256_setzero_si256();
        const int8_t *inputs = of->codes + place_of_word(bits, first + w);
        UNROLLED
        for (int n = 0; n < at_once; n++)
            add_word(tile->codes[first + w + n], bits, count, inputs + 4 * n, of->stride, sums);
        UNROLLED
        for (int i = 0; i < count; i++)
            UNROLLED
            for (int v = 0; v < VECTORS; v++) {
                __m256i wide = _mm256_madd_epi16(sums[i][0][v], _mm256_set1_epi16(1));
                if (bits == 8)
                    wide = _mm256_add_epi32(wide, _mm256_madd_epi16(sums[i][1][v], _mm256_set1_epi16(16)));
                found[i][v] = w ? _mm256_add_epi32(found[i][v], wide) : wide;
            }
    }
}

/* `blocks` blocks of a tile times `count` inputs. */
KERNEL void multiply_tile(const weights_tile *tile, const int bits, const int words, int64_t blocks, const int count,
                          const tile_inputs *of) {
    for (int64_t n = 0; n < blocks; n++) {
        __m256i whole[TILED][VECTORS];
        add_block(tile, n * words, bits, words, count, of, whole);
        UNROLLED
        for (int i = 0; i < count; i++) {
            const __m256 scale = _mm256_set1_ps(of->scales[i * of->blocks + n]);
            const __m256 sum = _mm256_set1_ps(of->sums[i * of->blocks + n]);
            __m256 *found = of->found[i][(of->first + n) % SUMS];
            UNROLLED
            for (int v = 0; v < VECTORS; v++) {
                const __m256 both = _mm256_mul_ps(tile->scales[n][v], scale);
                found[v] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[i][v]), both, found[v]);
                found[v] = _mm256_fnmadd_ps(tile->shifts[n][v], sum, found[v]);
            }
        }
    }
}

KERNEL void multiply_tile_by_chunk(const weights_tile *tile, const int bits, const int words, int64_t blocks,
                                   int64_t count, tile_inputs of) {
    const int most = bits == 4 ? TILED : TILED / 2; /* 8-bit codes have twice as many sums */
    for (; count >= most; count -= most) {
        multiply_tile(tile, bits, words, blocks, most, &of);
        of.codes += most * of.stride, of.scales += most * of.blocks, of.sums += most * of.blocks, of.found += most;
        of.next += blocks * words / words_a_step(bits, words) * of.lines * 64;
        if (of.next >= of.end) of.lines = 0;
    }
    if (count == 1) multiply_tile(tile, bits, words, blocks, 1, &of);
    if (most > 2 && count == 2) multiply_tile(tile, bits, words, blocks, 2, &of);
    if (most > 2 && count == 3) multiply_tile(tile, bits, words, blocks, 3, &of);
}

/* The sums of an output in the order of sum_of. */
KERNEL __m256 sum_of_eight(const __m256 (*found)[VECTORS], int v) {
    __m256 four[4];
    UNROLLED
    for (int n = 0; n < 4; n++) four[n] = _mm256_add_ps(found[n][v], found[n + 4][v]);
    return _mm256_add_ps(_mm256_add_ps(four[0], four[2]), _mm256_add_ps(four[1], four[3]));
}

KERNEL void write_sums(const megrez_weights *weights, int64_t row, int64_t count, const __m256 (*found)[SUMS][VECTORS],
                       float *outputs) {
    const int64_t left = weights->rows - row, rows = left < ROWS ? left : ROWS;
    float bias[ROWS] = {0}, sums[ROWS];
    if (weights->bias) memcpy(bias, weights->bias + row, (size_t)rows * sizeof *bias);
    for (int64_t i = 0; i < count; i++, outputs += weights->rows) {
        UNROLLED
        for (int v = 0; v < VECTORS; v++) {
            const __m256 sum = sum_of_eight(found[i], v);
            _mm256_storeu_ps(sums + v * LANES, _mm256_add_ps(sum, _mm256_loadu_ps(bias + v * LANES)));
        }
        if (rows == ROWS) memcpy(outputs + row, sums, sizeof sums);
        else memcpy(outputs + row, sums, (size_t)rows * sizeof *sums);
    }
}

/* Where the next 16 rows have the blocks from `first` on. */
KERNEL next_rows rows_after(const megrez_weights *weights, const int bits, const int words, int64_t row, int64_t first) {
    const int64_t blocks = weights->blocks, length = (blocks * bits + 7) / 8, after = row + ROWS;
    const uint8_t *points = weights->zero_points;
    return (next_rows){
        .codes = (const char *)weights->codes + (after * blocks + first * ROWS) * words * 4,
        .scales = (const char *)(weights->scales + after * blocks + first * ROWS),
        .points = points ? (const char *)points + after * length + first * bits / 8 * ROWS : NULL,
    };
}

/* The columns of a tile, from the block `start` on, of 16 rows times the inputs `first` to `last`. */
KERNEL void multiply_columns(const megrez_weights *weights, const megrez_inputs *all, const int bits, const int block,
                             int64_t row, int64_t start, int64_t first, int64_t last,
                             __m256 (*found)[SUMS][VECTORS]) {
    const int words = block * bits / 32;
    const int64_t blocks = weights->blocks, most = WORDS / words, count = start + most < blocks ? most : blocks - start;
    const int64_t at = first * blocks + start, groups = (last - first + TILED - 1) / TILED;
    const next_rows next = rows_after(weights, bits, words, row, start);
    const bool early = words < SHORT && !first && last - first <= FEW;
    const next_rows meanwhile = early ? next : (next_rows){0};
    const int64_t lines = words_a_step(bits, words) / (early ? 2 : 1);
    weights_tile tile;
    unpack_tile(weights, bits, words, row, start, count, &meanwhile, &tile);
    const tile_inputs of = {
        .codes = all->codes + megrez_place(bits, all->count, first, start * block),
        .stride = megrez_part(bits), .blocks = blocks, .first = start,
        .scales = all->scales + at, .sums = all->sums + at, .found = found,
        .next = next.codes + (early ? count * words * 32 : 0), .end = next.codes + count * words * 64,
        .lines = first ? 0 : (lines + groups - 1) / groups,
    };
    multiply_tile_by_chunk(&tile, bits, words, count, last - first, of);
}

/* 16 rows from `row` on times the inputs `first` to `last`, at most CHUNK. */
KERNEL void multiply_rows(const megrez_weights *weights, const megrez_inputs *all, const int bits, const int block,
                          int64_t row, int64_t first, int64_t last, float *outputs) {
    const int64_t most = WORDS / (block * bits / 32);
    __m256 found[CHUNK][SUMS][VECTORS];
    memset(found, 0, (size_t)(last - first) * sizeof *found);
    for (int64_t start = 0; start < weights->blocks; start += most)
        multiply_columns(weights, all, bits, block, row, start, first, last, found);
    write_sums(weights, row, last - first, (const __m256(*)[SUMS][VECTORS])found, outputs + first * weights->rows);
}

KERNEL void multiply_tiled(const megrez_weights *weights, const megrez_inputs *all, const int bits, const int block,
                           int64_t first_row, int64_t last_row, float *outputs) {
    for (int64_t row = first_row; row < last_row; row += ROWS)
        for (int64_t i = 0; i < all->count; i += CHUNK) {
            const int64_t last = i + CHUNK < all->count ? i + CHUNK : all->count;
            multiply_rows(weights, all, bits, block, row, i, last, outputs);
        }
}

#endif
#endif
