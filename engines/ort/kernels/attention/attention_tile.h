/* The inner loops of attention: a few queries of one KV head with a block of its keys. Their three steps, score, weigh and
 * gather, are in attention_float_avx2.h and attention_float_avx512.h.
 *
 * The softmax is computed online: partial sums are rescaled when a larger score is found, as in Milakov and
 * Gimelshein, "Online normalizer calculation for softmax" (2018).
 */
#ifndef MEGREZ_ATTENTION_TILE_H
#define MEGREZ_ATTENTION_TILE_H

#include "attention.h"
#include "avx2.h"

#ifdef MEGREZ_HAS_AVX2

#include <string.h>

enum {
    TILE = 4,  /* queries at once: with two keys, as many as the registers hold */
    KEYS = 64, /* at once: with their values they stay in the L1 cache for all queries */
};

static const float LEAST = -__builtin_inff();

/* The softmax state of a query: the largest score so far, and the sum of exponentials relative to it. */
typedef struct {
    float largest, sum;
} progress;

KERNEL float exponential_of_one(float x) { return _mm256_cvtss_f32(exponential(_mm256_set1_ps(x))); }

/* A mask of the keys from `n` on: all ones for those from `from` to `to`. */
KERNEL __m256 within(int64_t n, int64_t from, int64_t to) {
    const __m256i key = _mm256_add_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const __m256i early = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)from), key);
    return _mm256_castsi256_ps(_mm256_andnot_si256(early, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)to), key)));
}

#ifdef MEGREZ_AVX512
#include "attention_float_avx512.h"
#else
#include "attention_float_avx2.h"
#endif

/* The arguments of a tile of queries and a block of keys. first, last: the keys that any of the queries attends to. */
typedef struct {
    const float *queries[TILE];
    float *outputs[TILE];
    progress *so_far[TILE];
    int64_t from[TILE], to[TILE], first, last;
} tile;

KERNEL void attend_tile(const megrez_attention *all, const tile *of, const int count, const float *key,
                        const float *value) {
    float scores[TILE * KEYS], kept[TILE];
    const int64_t width = all->width;
    score(of->queries, count, key, of->last, width, scores);
    UNROLLED
    for (int q = 0; q < count; q++)
        kept[q] = weigh(scores + q * KEYS, of->from[q], of->to[q], all->scale, NULL, of->so_far[q]);
    gather(scores, value, of->first, of->last, width, count, kept, of->outputs);
}

#endif
#endif
