/* Grouped-query attention over a KV cache that is updated in place; float32, independent of ONNX Runtime. */
#ifndef MEGREZ_ATTENTION_H
#define MEGREZ_ATTENTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A batch of `rows` sequences with `tokens` new tokens each, of which the first fresh[row] are valid, others padding.
 * lengths[row]: tokens in the cache after this step, including the new ones. window: sliding window, 0 for none.
 * queries, new_keys and new_values are [tokens, heads, width] at strides (in floats) from token to token;
 * keys and values [rows, kv_heads, capacity, width]; cosines and sines [positions, rotated / 2]; outputs
 * [rows, tokens, heads, width].
 */
typedef struct {
    int64_t rows, tokens, heads, kv_heads, width, capacity, window, rotated;
    float scale; /* of the scores; 0 means 1 / sqrt(width) */
    const int32_t *lengths, *fresh;
    const float *cosines, *sines;
    const float *queries, *new_keys, *new_values;
    int64_t query_stride, key_stride, value_stride;
    float *keys, *values, *outputs;
    /* Set by megrez_attention_plan. parts: work items that share the keys of a query, to be joined at the end. */
    int64_t blocks, parts;
    float *rotated_queries, *partial;
} megrez_attention;

/* Whether this head size is supported: multiples of 8. */
bool megrez_attends(int64_t width);
/* Divide the work; returns the size in floats of the buffer for megrez_attention_use. */
size_t megrez_attention_plan(megrez_attention *all);
void megrez_attention_use(megrez_attention *all, float *room);
/* Three passes, each after the one before: over all tokens of all sequences, all work items, and all tokens again. */
void megrez_append(const megrez_attention *all, int64_t token);
int64_t megrez_attention_pieces(const megrez_attention *all);
void megrez_attend(const megrez_attention *all, int64_t piece);
void megrez_join(const megrez_attention *all, int64_t token);

#endif
