/* Grouped-query attention over a cache that is written in place; float32, knows no ONNX Runtime. */
#ifndef MEGREZ_ATTENTION_H
#define MEGREZ_ATTENTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* `rows` sequences, each with `tokens` new ones, of which the first fresh[row] are valid. lengths[row] tokens are in
 * its cache after this step, the new ones last. A query sees `window` of them, its own the last of these; 0: all.
 * queries, new_keys and new_values are [tokens, heads, width] at strides (in floats) from token to token;
 * keys and values [rows, kv_heads, capacity, width]; cosines and sines [positions, rotated / 2]; outputs
 * [rows, tokens, heads, width].
 */
typedef struct {
    int64_t rows, tokens, heads, kv_heads, width, capacity, window, rotated;
    float scale; /* of scores; 0: 1 / sqrt(width) */
    const int32_t *lengths, *fresh;
    const float *cosines, *sines;
    const float *queries, *new_keys, *new_values;
    int64_t query_stride, key_stride, value_stride;
    float *keys, *values, *outputs;
    /* Found by megrez_attention_plan: a cache is read in `parts` of `part` tokens, which are put together at last. */
    int64_t blocks, parts, part;
    float *rotated_queries, *partial;
} megrez_attention;

/* Whether heads of this width are taken: multiples of 8. */
bool megrez_attends(int64_t width);
/* Choose how the work is divided; returns how many floats of room it needs, for megrez_attention_use. */
size_t megrez_attention_plan(megrez_attention *all);
void megrez_attention_use(megrez_attention *all, float *room);
/* Three steps, each after all of the one before: of every token of every row, every piece of work, and every token. */
void megrez_append(const megrez_attention *all, int64_t token);
int64_t megrez_attention_pieces(const megrez_attention *all);
void megrez_attend(const megrez_attention *all, int64_t piece);
void megrez_join(const megrez_attention *all, int64_t token);

#endif
