/* Tokens of one KV head with AVX2: rotated, stored in a cache and loaded from it, and outputs of parts merged. */
#ifndef MEGREZ_ATTENTION_CACHE_H
#define MEGREZ_ATTENTION_CACHE_H

#include "attention.h"
#include "attention_tile.h"

#ifdef MEGREZ_HAS_AVX2

#include <string.h>

/* Rotary embedding of one head: pairs of the first and second half of the rotated channels. */
KERNEL void rotate(const megrez_attention *all, const float *from, const float *cosines, const float *sines,
                   float *to) {
    const int64_t half = all->rotated / 2;
    int64_t n = 0;
    for (; n + 8 <= half; n += 8) {
        const __m256 cosine = _mm256_loadu_ps(cosines + n), sine = _mm256_loadu_ps(sines + n);
        const __m256 first = _mm256_loadu_ps(from + n), second = _mm256_loadu_ps(from + half + n);
        _mm256_storeu_ps(to + n, _mm256_fmsub_ps(first, cosine, _mm256_mul_ps(second, sine)));
        _mm256_storeu_ps(to + half + n, _mm256_fmadd_ps(second, cosine, _mm256_mul_ps(first, sine)));
    }
    for (; n < half; n++) {
        const float first = from[n], second = from[half + n];
        to[n] = first * cosines[n] - second * sines[n];
        to[half + n] = second * cosines[n] + first * sines[n];
    }
    memcpy(to + all->rotated, from + all->rotated, (size_t)(all->width - all->rotated) * sizeof *to);
}

/* Rounds to nearest; the scale of a token that is not finite is NaN, and so are its products. */
KERNEL void store_int8(const float *from, int64_t width, int8_t *to, float *scale) {
    __m256 largest = _mm256_setzero_ps(), finite = _mm256_setzero_ps();
    for (int64_t n = 0; n < width; n += 8) {
        const __m256 x = _mm256_loadu_ps(from + n);
        largest = _mm256_max_ps(largest, _mm256_andnot_ps(_mm256_set1_ps(-0.f), x));
        finite = _mm256_fmadd_ps(x, _mm256_setzero_ps(), finite);
    }
    float lanes[8], zeros[8], most = 0;
    _mm256_storeu_ps(lanes, largest);
    _mm256_storeu_ps(zeros, finite);
    for (int n = 0; n < 8; n++) most = (lanes[n] > most ? lanes[n] : most) + zeros[n];
    const __m256 steps = _mm256_set1_ps(most > 0 ? 127 / most : 0);
    const __m256i order = _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4);
    for (int64_t n = 0; n < width; n += 8) {
        const __m256i codes = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(from + n), steps));
        const __m256i words = _mm256_packs_epi32(codes, codes);
        const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words, words), order);
        _mm_storel_epi64((__m128i *)(to + n), _mm256_castsi256_si128(bytes));
    }
    *scale = most / 127;
}

/* Store one token's [width] as the token `place` of a cache. */
KERNEL void store_token(megrez_cache_format format, const float *from, int64_t width, int64_t place, void *cache,
                        float *scales) {
    if (format == MEGREZ_INT8) {
        store_int8(from, width, (int8_t *)cache + place * width, scales + place);
    } else if (format == MEGREZ_FLOAT16) {
        for (int64_t n = 0; n < width; n += 8)
            _mm_storeu_si128((__m128i *)((uint16_t *)cache + place * width + n),
                             _mm256_cvtps_ph(_mm256_loadu_ps(from + n), _MM_FROUND_TO_NEAREST_INT));
    } else {
        memcpy((float *)cache + place * width, from, (size_t)width * sizeof *from);
    }
}

/* The `count` tokens of a float16 or int8 cache from the token `place` on, as float32 [count, width]. */
KERNEL void load_tokens(megrez_cache_format format, const void *cache, const float *scales, int64_t place,
                        int64_t count, int64_t width, float *to) {
    if (format == MEGREZ_FLOAT16) {
        const uint16_t *from = (const uint16_t *)cache + place * width;
        for (int64_t n = 0; n < count * width; n += 8)
            _mm256_storeu_ps(to + n, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + n))));
        return;
    }
    const int8_t *from = (const int8_t *)cache + place * width;
    for (int64_t token = 0; token < count; token++, from += width, to += width) {
        const __m256 scale = _mm256_set1_ps(scales[place + token]);
        for (int64_t n = 0; n < width; n += 8) {
            const __m256i codes = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(from + n)));
            _mm256_storeu_ps(to + n, _mm256_mul_ps(_mm256_cvtepi32_ps(codes), scale));
        }
    }
}

/* Add a part to a query's output, which is relative to the largest score so far. */
KERNEL void merge(const float *part, int64_t width, float *output, progress *so_far) {
    const float largest = part[width], sum = part[width + 1];
    if (sum == 0) return;
    const float highest = largest > so_far->largest ? largest : so_far->largest;
    const float kept = exponential_of_one(so_far->largest - highest), taken = exponential_of_one(largest - highest);
    for (int64_t n = 0; n < width; n += 8) {
        const __m256 more = _mm256_mul_ps(_mm256_loadu_ps(part + n), _mm256_set1_ps(taken));
        _mm256_storeu_ps(output + n, _mm256_fmadd_ps(_mm256_loadu_ps(output + n), _mm256_set1_ps(kept), more));
    }
    *so_far = (progress){highest, so_far->sum * kept + sum * taken};
}

KERNEL void normalise(int64_t width, float *output, const progress *so_far) {
    for (int64_t n = 0; n < width && so_far->sum > 0; n++) output[n] /= so_far->sum;
}

#endif
#endif
