/* Rows of a quantised matrix times up to four inputs: the matrix is read in order, as fast as memory is read. */
#ifndef MEGREZ_PRODUCTS_STREAMED_H
#define MEGREZ_PRODUCTS_STREAMED_H

#include "block_sums.h"
#include "products.h"

#ifdef MEGREZ_HAS_AVX2

#include <string.h>

enum { AHEAD = 4096 }; /* bytes: the next page, where hardware prefetching stops */

/* Eight floats, zeros for those from the `left`th on. */
KERNEL __m256 eight_floats(const float *from, int64_t left) {
    if (left >= 8) return _mm256_loadu_ps(from);
    const __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)left), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm256_maskload_ps(from, there);
}

KERNEL __m256 eight_points(const uint8_t *points, const int bits) {
    if (!points) return _mm256_set1_ps(bits == 4 ? 8 : 128);
    if (bits == 8) return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)points)));
    int32_t eight;
    memcpy(&eight, points, sizeof eight);
    const __m256i at = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(eight), at), _mm256_set1_epi32(15)));
}

/* Eight blocks of a row, or its last ones; points is NULL if there are none. Eight can be read, whatever they are. */
typedef struct {
    const uint8_t *codes;
    const float *scales;
    const uint8_t *points;
} blocks_of_row;

/* The same blocks of the inputs. Strides from input to input. */
typedef struct {
    const int8_t *codes;
    const float *scales, *sums;
    int64_t codes_stride, blocks_stride;
} blocks_of_inputs;

/* A copy of the last blocks of the matrix's last rows, behind which nothing may be read. */
typedef struct {
    uint8_t codes[8 * 256], points[8];
    float scales[8];
} last_blocks;

KERNEL void add_eight_blocks(const blocks_of_row *row, int64_t left, const int bits, const int block, const int count,
                             const blocks_of_inputs *inputs, __m256 *found) {
    const int bytes = block * bits / 8, vectors = bytes > WIDTH ? bytes / WIDTH : 1;
    const int shared = bytes < WIDTH ? WIDTH / bytes : 1;
    wide sums[8][STREAMED];
    for (int line = 0; line < 8 * bytes; line += 64) _mm_prefetch((const char *)row->codes + AHEAD + line, _MM_HINT_T0);
    UNROLLED
    for (int b = 0; b < 8; b += shared) {
        if (b < left) {
            const int8_t *codes = inputs->codes + megrez_place(bits, count, 0, b * block);
            block_sums(row->codes + b * bytes, bits, vectors, count, inputs->codes_stride, codes,
                       sums[b / shared]);
        } else {
            for (int i = 0; i < count; i++) sums[b / shared][i] = (wide){0};
        }
    }
    const __m256 scale = eight_floats(row->scales, left);
    const __m256 shift = _mm256_mul_ps(scale, eight_points(row->points, bits));
    UNROLLED
    for (int i = 0; i < count; i++) {
        const int64_t at = i * inputs->blocks_stride;
        const __m256 whole = _mm256_cvtepi32_ps(eight_sums((const wide(*)[STREAMED])sums, i, shared, left));
        const __m256 both = _mm256_mul_ps(scale, eight_floats(inputs->scales + at, left));
        found[i] = _mm256_fmadd_ps(whole, both, found[i]);
        found[i] = _mm256_fnmadd_ps(shift, eight_floats(inputs->sums + at, left), found[i]);
    }
}

KERNEL blocks_of_row copy_blocks(const blocks_of_row *of, size_t left, const int bits, const int block,
                                 last_blocks *to) {
    memcpy(to->codes, of->codes, left * (size_t)(block * bits / 8));
    memcpy(to->scales, of->scales, left * sizeof *to->scales);
    if (of->points) memcpy(to->points, of->points, (left * (size_t)bits + 7) / 8);
    return (blocks_of_row){to->codes, to->scales, of->points ? to->points : NULL};
}

/* One row times all inputs: what each vector of found[i] sums up to is the output of the input i. */
KERNEL void multiply_row(const megrez_weights *weights, const megrez_inputs *all, const int bits, const int block,
                         const int count, int64_t row, __m256 *found) {
    const int64_t blocks = weights->blocks, part = megrez_part(bits);
    const uint8_t *points = weights->zero_points;
    if (points) points += row * ((blocks * bits + 7) / 8);
    blocks_of_row of = {weights->codes + row * blocks * (block * bits / 8), weights->scales + row * blocks, points};
    blocks_of_inputs inputs = {all->codes, all->scales, all->sums, part, blocks};
    int64_t n = 0;
    for (; n + 8 <= blocks; n += 8) {
        add_eight_blocks(&of, 8, bits, block, count, &inputs, found);
        of.codes += block * bits, of.scales += 8;
        if (points) of.points += bits;
        inputs.codes = all->codes + megrez_place(bits, count, 0, (n + 8) * block);
        inputs.scales += 8, inputs.sums += 8;
    }
    if (n == blocks) return;
    last_blocks copy;
    if (weights->rows - row <= 8) of = copy_blocks(&of, (size_t)(blocks - n), bits, block, &copy);
    add_eight_blocks(&of, blocks - n, bits, block, count, &inputs, found);
}

/* The rows first_row to last_row times all `count` inputs; bits, block and count are constants. */
KERNEL void multiply_streamed(const megrez_weights *weights, const megrez_inputs *all, const int bits, const int block,
                              const int count, int64_t first_row, int64_t last_row, float *outputs) {
    for (int64_t row = first_row; row < last_row; row++) {
        __m256 found[STREAMED];
        UNROLLED
        for (int i = 0; i < count; i++) found[i] = _mm256_setzero_ps();
        multiply_row(weights, all, bits, block, count, row, found);
        const float bias = weights->bias ? weights->bias[row] : 0;
        UNROLLED
        for (int i = 0; i < count; i++) outputs[i * weights->rows + row] = sum_of(found[i]) + bias;
    }
}

#endif
#endif
