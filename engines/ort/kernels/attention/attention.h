/* Grouped-query attention over a KV cache that is updated in place; computes in float32, independent of ONNX Runtime. */
#ifndef MEGREZ_ATTENTION_H
#define MEGREZ_ATTENTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How keys and values are stored. In int8, each token of a KV head has one scale: its largest magnitude is 127 steps.
 * Keys are spread by a Hadamard transform first, and queries with them: a few channels of keys are much larger than the
 * others. It changes no score (QuaRot, Ashkboos et al., 2024).
 */
typedef enum { MEGREZ_FLOAT32, MEGREZ_FLOAT16, MEGREZ_INT8 } megrez_cache_format;

/* A batch of `rows` sequences with `tokens` new tokens each, of which the first fresh[row] are valid, others padding.
 * owners and firsts: NULL, or the new tokens are `count` valid ones without padding: owners[token] is the row of one, and
 * firsts[row] the first of a row. lengths[row]: tokens in the cache after this step, including the new ones. window:
 * sliding window, 0 for none.
 * queries, new_keys and new_values are [tokens, heads, width] at strides (in floats) from token to token;
 * keys and values [rows, kv_heads, capacity, width] in `format`, key_scales and value_scales [rows, kv_heads, capacity]
 * for int8; cosines and sines [positions, rotated / 2]; outputs [count, heads, width], where count is rows * tokens
 * with padding.
 */
typedef struct {
    int64_t rows, tokens, count, heads, kv_heads, width, capacity, window, rotated;
    float scale; /* of the scores; 0 means 1 / sqrt(width) */
    const int32_t *lengths, *fresh, *owners, *firsts;
    const float *cosines, *sines;
    const float *queries, *new_keys, *new_values;
    int64_t query_stride, key_stride, value_stride;
    megrez_cache_format format;
    void *keys, *values;
    float *key_scales, *value_scales, *outputs;
    /* Set by megrez_attention_plan. parts: work items that share the keys of a query, to be joined at the end. */
    int64_t blocks, parts;
    float *rotated_queries, *partial;
} megrez_attention;

/* Whether this head size is supported: multiples of 8, up to 512 unless the cache is float32. */
bool megrez_attends(int64_t width, megrez_cache_format format);
/* Divide the work; returns the size in floats of the buffer for megrez_attention_use. */
size_t megrez_attention_plan(megrez_attention *all);
void megrez_attention_use(megrez_attention *all, float *room);
int64_t megrez_attention_pieces(const megrez_attention *all);

/* A query's keys are read in parts that are merged in order, whether in one work item or in several: its output does not
 * depend on which other queries and sequences are in the step.
 */
enum {
    MEGREZ_ROWS = 32,   /* queries per work item, of all query heads that share a KV head */
    MEGREZ_PART = 128,  /* keys; a work item of its own if there are few queries */
    MEGREZ_WIDEST = 512 /* of caches whose tokens are converted to float32 before use */
};

static inline int64_t megrez_least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t megrez_most(int64_t a, int64_t b) { return a > b ? a : b; }

/* The channels that are transformed together: the largest power of two that divides the width. */
static inline int64_t megrez_spread(int64_t width) { return width & -width; }

/* Three passes, each after the one before: over all tokens of all sequences, all work items, and all tokens again. */
typedef struct {
    void (*append)(const megrez_attention *all, int64_t token);
    void (*attend)(const megrez_attention *all, int64_t piece);
    void (*join)(const megrez_attention *all, int64_t token);
} megrez_attention_passes;

extern const megrez_attention_passes MEGREZ_ATTENTION_AVX512, MEGREZ_ATTENTION_AVX2, MEGREZ_ATTENTION_PORTABLE;

/* The passes with the best instructions of this processor, in portable C where the processor lacks AVX2 or MEGREZ_KERNELS is
 * "portable".
 */
const megrez_attention_passes *megrez_attention_here(void);

#endif
