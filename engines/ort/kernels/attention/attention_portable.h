/* The functions of attention_tile.h and attention_cache.h in portable C. */
#ifndef MEGREZ_ATTENTION_PORTABLE_H
#define MEGREZ_ATTENTION_PORTABLE_H

#include "attention.h"

#include <math.h>
#include <string.h>

enum { TILE = 4, KEYS = 64 };

typedef struct {
    float largest, sum;
} progress;

/* As in attention_tile.h. */
typedef struct {
    const float *queries[TILE];
    float *outputs[TILE];
    progress *so_far[TILE];
    int64_t from[TILE], to[TILE], first, last;
} tile;

static void rotate(const megrez_attention *all, const float *from, const float *cosines, const float *sines,
                   float *to) {
    const int64_t half = all->rotated / 2;
    for (int64_t n = 0; n < half; n++) {
        const float first = from[n], second = from[half + n];
        to[n] = first * cosines[n] - second * sines[n];
        to[half + n] = second * cosines[n] + first * sines[n];
    }
    memcpy(to + all->rotated, from + all->rotated, (size_t)(all->width - all->rotated) * sizeof *to);
}

/* Hadamard transform of each `megrez_spread` channels, divided by its square root. */
static void spread(float *x, int64_t width) {
    const int64_t size = megrez_spread(width);
    const float factor = 1 / sqrtf((float)size);
    for (int64_t n = 0; n < width; n++) x[n] *= factor;
    for (int64_t step = 1; step < size; step *= 2)
        for (int64_t n = 0; n < width; n += n % (2 * step) == step - 1 ? step + 1 : 1) {
            const float a = x[n], b = x[n + step];
            x[n] = a + b, x[n + step] = a - b;
        }
}

/* Rounds to nearest, and to even between two. */
static uint16_t half_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return (uint16_t)(sign | 0x7e00); /* NaN */
    if (size >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* rounds to more than 65504 */
    if (size < 0x38800000) return (uint16_t)(sign | (uint32_t)lrintf(fabsf(x) * 16777216.f)); /* steps of 2^-24 */
    const uint32_t rounded = size + 0xfff + (size >> 13 & 1) - 0x38000000; /* exponents are biased by 112 more */
    return (uint16_t)(sign | rounded >> 13);
}

static float float_of(uint16_t half) {
    const uint32_t size = half & 0x7fff, sign = (uint32_t)(half & 0x8000) << 16;
    float x;
    if (size < 0x400) {
        x = (float)size / 16777216.f;
        return sign ? -x : x;
    }
    const uint32_t bits = sign | ((size << 13) + (size < 0x7c00 ? 0x38000000u : 0x70000000u));
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Rounds to nearest; the scale of a token that is not finite is NaN, and so are its products. */
static void store_int8(const float *from, int64_t width, int8_t *to, float *scale) {
    float most = 0;
    for (int64_t n = 0; n < width; n++) most = (fabsf(from[n]) > most ? fabsf(from[n]) : most) + from[n] * 0;
    const float steps = most > 0 ? 127 / most : 0;
    for (int64_t n = 0; n < width && steps > 0; n++) to[n] = (int8_t)lrintf(from[n] * steps);
    if (!(steps > 0)) memset(to, 0, (size_t)width);
    *scale = most / 127;
}

static void store_token(megrez_cache_format format, const float *from, int64_t width, int64_t place, void *cache,
                        float *scales) {
    if (format == MEGREZ_INT8)
        store_int8(from, width, (int8_t *)cache + place * width, scales + place);
    else if (format == MEGREZ_FLOAT16)
        for (int64_t n = 0; n < width; n++) ((uint16_t *)cache)[place * width + n] = half_of(from[n]);
    else
        memcpy((float *)cache + place * width, from, (size_t)width * sizeof *from);
}

/* For an int8 cache. */
static void prepare_query(float *query, int64_t width) { spread(query, width); }

/* Up to KEYS tokens of a KV head in float32, [tokens, width]. */
typedef struct {
    const float *key, *value;
} block;

static void load_tokens(megrez_cache_format format, const void *cache, const float *scales, int64_t place,
                        int64_t count, int64_t width, float *to) {
    const int64_t first = place * width;
    for (int64_t n = 0; n < count * width; n++)
        to[n] = format == MEGREZ_FLOAT16 ? float_of(((const uint16_t *)cache)[first + n])
                                         : (float)((const int8_t *)cache)[first + n] * scales[place + n / width];
}

/* The `count` tokens of the cache from the token `first` on. room: [2, KEYS, width] where they are not float32. */
static void read_block(const megrez_attention *all, int64_t first, int64_t count, float *room, block *found) {
    const int64_t width = all->width;
    if (all->format == MEGREZ_FLOAT32) {
        *found = (block){(const float *)all->keys + first * width, (const float *)all->values + first * width};
        return;
    }
    *found = (block){room, room + KEYS * width};
    load_tokens(all->format, all->keys, all->key_scales, first, count, width, room);
    load_tokens(all->format, all->values, all->value_scales, first, count, width, room + KEYS * width);
}

/* One query with the keys that it sees: the softmax is computed online, as in attention_tile.h. */
static void attend_query(const megrez_attention *all, const tile *of, int q, const float *key, const float *value) {
    const int64_t width = all->width;
    float scores[KEYS], highest = of->so_far[q]->largest, sum = 0, *output = of->outputs[q];
    for (int64_t k = of->from[q]; k < of->to[q]; k++) {
        float found = 0;
        for (int64_t n = 0; n < width; n++) found += of->queries[q][n] * key[k * width + n];
        scores[k] = found * all->scale;
        if (!(scores[k] <= highest)) highest = scores[k];
    }
    const float kept = of->so_far[q]->largest == highest ? 1 : expf(of->so_far[q]->largest - highest);
    for (int64_t n = 0; n < width; n++) output[n] *= kept;
    for (int64_t k = of->from[q]; k < of->to[q]; k++) {
        const float weight = expf(scores[k] - highest);
        for (int64_t n = 0; n < width; n++) output[n] += weight * value[k * width + n];
        sum += weight;
    }
    *of->so_far[q] = (progress){highest, of->so_far[q]->sum * kept + sum};
}

static void attend_tile_of(const megrez_attention *all, const tile *of, int count, const block *keys) {
    for (int q = 0; q < count; q++)
        if (of->from[q] < of->to[q]) attend_query(all, of, q, keys->key, keys->value);
}

/* Add a part to a query's output, which is relative to the largest score so far. */
static void merge(const float *part, int64_t width, float *output, progress *so_far) {
    const float largest = part[width], sum = part[width + 1];
    if (sum == 0) return;
    const float highest = largest > so_far->largest ? largest : so_far->largest;
    const float kept = expf(so_far->largest - highest), taken = expf(largest - highest);
    for (int64_t n = 0; n < width; n++) output[n] = output[n] * kept + part[n] * taken;
    *so_far = (progress){highest, so_far->sum * kept + sum * taken};
}

static void normalise(int64_t width, float *output, const progress *so_far) {
    for (int64_t n = 0; n < width && so_far->sum > 0; n++) output[n] /= so_far->sum;
}

#endif
