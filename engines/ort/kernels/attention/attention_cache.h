/* Tokens of one KV head with AVX2: rotated, stored in a cache and read from it, and outputs of parts merged. */
#ifndef MEGREZ_ATTENTION_CACHE_H
#define MEGREZ_ATTENTION_CACHE_H

#include "attention.h"
#include "attention_int8.h"
#include "attention_tile.h"

#ifdef MEGREZ_HAS_AVX2

#include <math.h>
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

/* Hadamard transform of each `megrez_spread` channels, divided by its square root. */
KERNEL void spread(float *x, int64_t width) {
    const int64_t size = megrez_spread(width);
    const __m256 negative = _mm256_set1_ps(-0.f), factor = _mm256_set1_ps(1 / sqrtf((float)size));
    const __m256 odd = _mm256_blend_ps(_mm256_setzero_ps(), negative, 0xaa);
    const __m256 second = _mm256_blend_ps(_mm256_setzero_ps(), negative, 0xcc);
    const __m256 upper = _mm256_blend_ps(_mm256_setzero_ps(), negative, 0xf0);
    for (int64_t n = 0; n < width; n += 8) {
        __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + n), factor);
        v = _mm256_add_ps(_mm256_permute_ps(v, 0xb1), _mm256_xor_ps(v, odd));
        v = _mm256_add_ps(_mm256_permute_ps(v, 0x4e), _mm256_xor_ps(v, second));
        v = _mm256_add_ps(_mm256_permute2f128_ps(v, v, 1), _mm256_xor_ps(v, upper));
        _mm256_storeu_ps(x + n, v);
    }
    for (int64_t step = 8; step < size; step *= 2)
        for (int64_t n = 0; n < width; n += n % (2 * step) == step - 8 ? step + 8 : 8) {
            const __m256 a = _mm256_loadu_ps(x + n), b = _mm256_loadu_ps(x + n + step);
            _mm256_storeu_ps(x + n, _mm256_add_ps(a, b));
            _mm256_storeu_ps(x + n + step, _mm256_sub_ps(a, b));
        }
}

/* Rounds to nearest; the scale of a token that is not finite is NaN, and so are its products. */
KERNEL void store_int8(const float *from, int64_t width, int8_t *to, float *scale) {
    const float most = largest_of(from, width);
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

/* For an int8 cache. */
KERNEL void prepare_query(float *query, int64_t width) {
    spread(query, width);
    round_query(query, width);
}

/* Up to KEYS tokens of a KV head: float32 or, with KEYS scales, int8 [tokens, width]. */
typedef struct {
    const void *key, *value;
    const float *key_scales, *value_scales;
} block;

KERNEL void widen(const uint16_t *from, int64_t count, float *to) {
    for (int64_t n = 0; n < count; n += 8)
        _mm256_storeu_ps(to + n, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + n))));
}

/* KEYS scales of a block of `count` tokens, 0 where no token is. */
KERNEL const float *scales_of(const float *scales, int64_t count, float *room) {
    if (count == KEYS) return scales;
    memset(room, 0, KEYS * sizeof *room);
    return memcpy(room, scales, (size_t)count * sizeof *room);
}

/* The `count` tokens of the cache from the token `first` on. room: [2, KEYS, width] unless the cache is float32. */
KERNEL void read_block(const megrez_attention *all, int64_t first, int64_t count, float *room, block *found) {
    const int64_t width = all->width, at = first * width;
    if (all->format == MEGREZ_FLOAT32) {
        found->key = (const float *)all->keys + at, found->value = (const float *)all->values + at;
    } else if (all->format == MEGREZ_FLOAT16) {
        found->key = room, found->value = room + KEYS * width;
        widen((const uint16_t *)all->keys + at, count * width, room);
        widen((const uint16_t *)all->values + at, count * width, room + KEYS * width);
    } else {
        found->key = (const int8_t *)all->keys + at, found->value = (const int8_t *)all->values + at;
        found->key_scales = scales_of(all->key_scales + first, count, room);
        found->value_scales = scales_of(all->value_scales + first, count, room + KEYS);
    }
}

KERNEL void attend_tile_of(const megrez_attention *all, const tile *of, const int count, const block *keys) {
    if (all->format == MEGREZ_INT8)
        attend_tile_int8(all, of, count, keys->key, keys->value, keys->key_scales, keys->value_scales);
    else
        attend_tile(all, of, count, keys->key, keys->value);
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
