/* Rows of a quantised matrix times many inputs: 16 rows at a time are unpacked once for all of them. */
#ifndef MEGREZ_PRODUCTS_TILED_H
#define MEGREZ_PRODUCTS_TILED_H

#include "weights_tile.h"

#ifdef MEGREZ_HAS_AVX2

#ifdef MEGREZ_AVX512
enum { TILED = 16 }; /* inputs at once: as many as the registers hold the sums of */
#else
enum { TILED = 4 };
#endif

enum {
    CHUNK = 64, /* inputs whose sums stay in the L1 cache, with the tile */
    FEW = 8,    /* inputs of short blocks up to which half of what is next is fetched while a tile is unpacked */
    SHORT = 16, /* words: longer blocks are multiplied by few inputs without a tile, see products_shapes.h */
    SUMS = 8,   /* an output has, of blocks 8 apart: as in products_streamed.h, where they are a vector's lanes */
};

/* Some inputs' values for a tile's columns, and where their sums are. */
typedef struct {
    const int8_t *codes; /* at `stride` from input to input */
    int64_t stride, blocks, first;
    const float *scales, *sums; /* [inputs, blocks], from the tile's first block on */
    wide_float (*found)[SUMS][VECTORS];
    const char *next, *end; /* codes that are read later, of which `lines` cache lines are fetched for every step */
    int64_t lines;
} tile_inputs;

KERNEL wide four_codes(const int8_t *codes) {
    int32_t word;
    memcpy(&word, codes, sizeof word);
    return WIDE(set1_epi32)(word);
}

/* A word's first value in an input. */
KERNEL int64_t place_of_word(const int bits, int64_t word) {
    return bits == 4 ? word / (GROUP / 8) * GROUP + word % (GROUP / 8) * 4 : word * 4;
}

/* Words that are added up in 16 bits: a step. */
KERNEL int words_a_step(const int bits, const int words) {
    const int most = bits == 4 ? 4 : 8; /* sums of 16 bits are of 8 pairs */
    return words < most ? words : most;
}

#ifdef MEGREZ_VNNI

/* A part of a word of a tile's codes times the values of each input, added to `found`. */
KERNEL void add_part(const wide *codes, const int count, const int8_t *inputs, int64_t stride,
                     wide (*found)[VECTORS]) {
    UNROLLED
    for (int i = 0; i < count; i++) {
        const wide input = four_codes(inputs + i * stride);
        UNROLLED
        for (int v = 0; v < VECTORS; v++) {
            found[i][v] = ADD_PRODUCTS(found[i][v], codes[v], input);
            KEPT(found[i][v]);
        }
    }
}

/* `words` words of a tile from `first` on times the values of each input, added to `found`. Few inputs have two sums each:
 * an addition waits for the one before.
 */
KERNEL void add_words(const weights_tile *tile, int64_t first, const int bits, const int words, const int count,
                      const tile_inputs *of, wide (*found)[VECTORS]) {
    const int8_t *inputs = of->codes + place_of_word(bits, first);
    wide others[TILED][VECTORS];
    UNROLLED
    for (int i = 0; i < count; i++)
        UNROLLED
        for (int v = 0; v < VECTORS; v++) others[i][v] = (wide){0};
    UNROLLED
    for (int n = 0; n < words; n++) {
        const bool other = count * VECTORS < 8 && (halved(bits) || n % 2);
        add_part(tile->codes[first + n][0], count, inputs + 4 * n, of->stride, other && !halved(bits) ? others : found);
        if (halved(bits))
            add_part(tile->codes[first + n][1], count, inputs + 4 * n + GROUP / 2, of->stride, other ? others : found);
    }
    if (count * VECTORS >= 8) return;
    UNROLLED
    for (int i = 0; i < count; i++)
        UNROLLED
        for (int v = 0; v < VECTORS; v++) found[i][v] = WIDE(add_epi32)(found[i][v], others[i][v]);
}

#else

/* A word of a tile's codes times the values of each input; sums: of 8-bit codes, of their halves. */
KERNEL void add_word(const wide (*codes)[VECTORS], const int bits, const int count, const int8_t *inputs,
                     int64_t stride, wide (*sums)[2][VECTORS]) {
    UNROLLED
    for (int half = 0; half < 2; half++)
        UNROLLED
        for (int i = 0; i < count; i++) {
            const wide input = four_codes(inputs + i * stride + (bits == 4 ? GROUP / 2 * half : 0));
            UNROLLED
            for (int v = 0; v < VECTORS; v++) {
                wide *sum = &sums[i][bits == 4 ? 0 : half][v];
                *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(codes[half][v], input));
                KEPT(*sum);
            }
        }
}

/* The same as above, in 16 bits first: at most words_a_step. */
KERNEL void add_words(const weights_tile *tile, int64_t first, const int bits, const int words, const int count,
                      const tile_inputs *of, wide (*found)[VECTORS]) {
    const wide one = _mm256_set1_epi16(1), sixteen = _mm256_set1_epi16(16);
    const int8_t *inputs = of->codes + place_of_word(bits, first);
    wide sums[TILED][2][VECTORS];
    UNROLLED
    for (int i = 0; i < count; i++)
        UNROLLED
        for (int v = 0; v < VECTORS; v++) sums[i][0][v] = sums[i][1][v] = _mm256_setzero_si256();
    UNROLLED
    for (int n = 0; n < words; n++)
        add_word(tile->codes[first + n], bits, count, inputs + 4 * n, of->stride, sums);
    UNROLLED
    for (int i = 0; i < count; i++)
        UNROLLED
        for (int v = 0; v < VECTORS; v++) {
            found[i][v] = _mm256_add_epi32(found[i][v], _mm256_madd_epi16(sums[i][0][v], one));
            if (bits == 8) found[i][v] = _mm256_add_epi32(found[i][v], _mm256_madd_epi16(sums[i][1][v], sixteen));
        }
}

#endif

/* The sums of a block that starts with the word `first`. */
KERNEL void add_block(const weights_tile *tile, int64_t first, const int bits, const int words, const int count,
                      const tile_inputs *of, wide (*found)[VECTORS]) {
    const int at_once = words_a_step(bits, words);
    UNROLLED
    for (int i = 0; i < count; i++)
        UNROLLED
        for (int v = 0; v < VECTORS; v++) found[i][v] = (wide){0};
    ROLLED
    for (int w = 0; w < words; w += at_once) {
        for (int64_t line = (first + w) / at_once * of->lines, end = line + of->lines; line < end; line++)
            _mm_prefetch(of->next + line * 64, _MM_HINT_T0);
        add_words(tile, first + w, bits, at_once, count, of, found);
    }
}

/* `blocks` blocks of a tile times `count` inputs. */
KERNEL void multiply_tile(const weights_tile *tile, const int bits, const int words, int64_t blocks, const int count,
                          const tile_inputs *of) {
    for (int64_t n = 0; n < blocks; n++) {
        wide whole[TILED][VECTORS];
        add_block(tile, n * words, bits, words, count, of, whole);
        UNROLLED
        for (int i = 0; i < count; i++) {
            const wide_float scale = WIDE(set1_ps)(of->scales[i * of->blocks + n]);
            const wide_float sum = WIDE(set1_ps)(of->sums[i * of->blocks + n]);
            wide_float *found = of->found[i][(of->first + n) % SUMS];
            UNROLLED
            for (int v = 0; v < VECTORS; v++) {
                const wide_float both = WIDE(mul_ps)(tile->scales[n][v], scale);
                const wide_float before = of->first + n < SUMS ? (wide_float){0} : found[v];
                const wide_float more = WIDE(fmadd_ps)(WIDE(cvtepi32_ps)(whole[i][v]), both, before);
                found[v] = WIDE(fnmadd_ps)(tile->shifts[n][v], sum, more);
            }
        }
    }
}

/* As many times `at_once` inputs as `count` has; moves `of` on. */
KERNEL int64_t multiply_at_once(const weights_tile *tile, const int bits, const int words, int64_t blocks,
                                int64_t count, const int at_once, tile_inputs *of) {
    for (; count >= at_once; count -= at_once) {
        multiply_tile(tile, bits, words, blocks, at_once, of);
        of->codes += at_once * of->stride, of->scales += at_once * of->blocks, of->sums += at_once * of->blocks;
        of->found += at_once;
        of->next += blocks * words / words_a_step(bits, words) * of->lines * 64;
        if (of->next >= of->end) of->lines = 0;
    }
    return count;
}

KERNEL void multiply_tile_by_chunk(const weights_tile *tile, const int bits, const int words, int64_t blocks,
                                   int64_t count, tile_inputs of) {
    const int most = halved(bits) && bits == 8 ? TILED / 2 : TILED; /* halved 8-bit codes have twice as many sums */
    if (most >= 16) count = multiply_at_once(tile, bits, words, blocks, count, 16, &of);
    if (most >= 8) count = multiply_at_once(tile, bits, words, blocks, count, 8, &of);
    if (most >= 4) count = multiply_at_once(tile, bits, words, blocks, count, 4, &of);
    else count = multiply_at_once(tile, bits, words, blocks, count, 2, &of);
    if (count == 3) multiply_tile(tile, bits, words, blocks, 3, &of);
    if (count == 2) multiply_tile(tile, bits, words, blocks, 2, &of);
    if (count == 1) multiply_tile(tile, bits, words, blocks, 1, &of);
}

/* The sums of an output in the order of sum_of. */
KERNEL wide_float sum_of_eight(const wide_float (*found)[VECTORS], int v) {
    wide_float four[4];
    UNROLLED
    for (int n = 0; n < 4; n++) four[n] = WIDE(add_ps)(found[n][v], found[n + 4][v]);
    return WIDE(add_ps)(WIDE(add_ps)(four[0], four[2]), WIDE(add_ps)(four[1], four[3]));
}

KERNEL void write_sums(const megrez_weights *weights, int64_t row, int64_t count, const wide_float (*found)[SUMS][VECTORS],
                       float *outputs) {
    const int64_t left = weights->rows - row, rows = left < ROWS ? left : ROWS;
    float bias[ROWS] = {0}, sums[ROWS];
    if (weights->bias) memcpy(bias, weights->bias + row, (size_t)rows * sizeof *bias);
    for (int64_t i = 0; i < count; i++, outputs += weights->rows) {
        UNROLLED
        for (int v = 0; v < VECTORS; v++) {
            const wide_float sum = sum_of_eight(found[i], v);
            WIDE(storeu_ps)(sums + v * LANES, WIDE(add_ps)(sum, WIDE(loadu_ps)(bias + v * LANES)));
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
                             wide_float (*found)[SUMS][VECTORS]) {
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
    wide_float found[CHUNK][SUMS][VECTORS];
    if (weights->blocks < SUMS) memset(found, 0, (size_t)(last - first) * sizeof *found); /* others are written first */
    for (int64_t start = 0; start < weights->blocks; start += most)
        multiply_columns(weights, all, bits, block, row, start, first, last, found);
    write_sums(weights, row, last - first, (const wide_float(*)[SUMS][VECTORS])found, outputs + first * weights->rows);
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
