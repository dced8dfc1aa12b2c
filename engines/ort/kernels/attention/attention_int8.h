/* The inner loops of attention over an int8 cache: a few queries of one KV head with a block of its keys. Three steps, score,
 * round_weights and gather, are in attention_int8_avx2.h and attention_int8_avx512.h.
 *
 * Products are summed in integers: queries, and the weights of values, are rounded to 16 bits. 512 products of 127 and
 * 32767, the most there are in a sum, fit 32 bits.
 */
#ifndef MEGREZ_ATTENTION_INT8_H
#define MEGREZ_ATTENTION_INT8_H

#include "attention_tile.h"

#ifdef MEGREZ_HAS_AVX2

/* Where the scale of a query of 16-bit codes is stored, in floats: behind its codes. */
KERNEL int64_t scale_place(int64_t width) { return width / 2; }

/* The largest magnitude of x [width], a multiple of 8; NaN if any is not finite. */
KERNEL float largest_of(const float *x, int64_t width) {
    __m256 largest = _mm256_setzero_ps(), finite = _mm256_setzero_ps();
    for (int64_t n = 0; n < width; n += 8) {
        const __m256 v = _mm256_loadu_ps(x + n);
        largest = _mm256_max_ps(largest, _mm256_andnot_ps(_mm256_set1_ps(-0.f), v));
        finite = _mm256_fmadd_ps(v, _mm256_setzero_ps(), finite);
    }
    float lanes[8], zeros[8], most = 0;
    _mm256_storeu_ps(lanes, largest);
    _mm256_storeu_ps(zeros, finite);
    for (int n = 0; n < 8; n++) most = (lanes[n] > most ? lanes[n] : most) + zeros[n];
    return most;
}

/* Round a query to 16 bits, in place; a query that is not finite gets a scale of NaN. */
KERNEL void round_query(float *query, int64_t width) {
    const float most = largest_of(query, width);
    const __m256 steps = _mm256_set1_ps(most > 0 ? 32767 / most : 0);
    for (int64_t n = 0; n < width; n += 8) {
        const __m256i codes = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(query + n), steps));
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(codes, codes), 0xd8);
        _mm_storeu_si128((__m128i *)((int16_t *)query + n), _mm256_castsi256_si128(words));
    }
    query[scale_place(width)] = most / 32767;
}

/* Fetches the token of the next block at the place of `from`. One by one: many at once wait for each other. */
KERNEL void prefetch_next(const int8_t *from, int64_t width) { __builtin_prefetch(from + KEYS * width); }

#ifdef MEGREZ_AVX512
#include "attention_int8_avx512.h"
#else
#include "attention_int8_avx2.h"
#endif

/* As attend_tile in attention_tile.h, with the block's codes and KEYS scales, which are finite where no key is. */
KERNEL void attend_tile_int8(const megrez_attention *all, const tile *of, const int count, const int8_t *key,
                             const int8_t *value, const float *key_scales, const float *value_scales) {
    float scores[TILE * KEYS], kept[TILE], factors[TILE];
    int16_t codes[TILE * KEYS];
    const int64_t width = all->width;
    score_int8(of->queries, count, key, of->last, width, scores);
    UNROLLED
    for (int q = 0; q < count; q++) {
        float *own = scores + q * KEYS;
        const float scale = all->scale * of->queries[q][scale_place(width)];
        kept[q] = weigh(own, of->from[q], of->to[q], scale, key_scales, of->so_far[q]);
        factors[q] = round_weights(own, value_scales, of->from[q], of->to[q], codes + q * KEYS);
    }
    gather_int8(codes, value, of->first, of->last, width, count, kept, factors, of->outputs);
}

#endif
#endif
