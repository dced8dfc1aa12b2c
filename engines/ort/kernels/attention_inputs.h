/* The inputs and attributes of GroupQueryAttention, which DecoderLayer shares. */
#ifndef MEGREZ_ATTENTION_INPUTS_H
#define MEGREZ_ATTENTION_INPUTS_H

#include "attention.h"
#include "operator.h"

enum {
    QUERY, KEY, VALUE, PAST_KEY, PAST_VALUE, LENGTHS, LONGEST, COSINES, SINES,
    POSITIONS, BIAS, SINK, KEY_SCALE, VALUE_SCALE, QUERY_NORM, KEY_NORM, /* only the scales are supported */
    FRESH, ATTENTION_INPUTS
};

/* Attributes, and what follows from the data type of the cache. */
typedef struct {
    const megrez_attention_passes *passes;
    megrez_cache_format format;
    int64_t heads, kv_heads, window;
    float scale;
} megrez_attention_settings;

typedef struct {
    const void *data[ATTENTION_INPUTS];
    megrez_shape shapes[ATTENTION_INPUTS];
} megrez_attention_inputs;

/* The settings of a node; rejects what would be computed differently from ONNX Runtime's operator. */
ort_status *megrez_attention_read(
    const ort_api *api, const ort_kernel_info *info, megrez_cache_format format, megrez_attention_settings *found
);
/* Everything of a step but the queries, new keys and values: `all` has rows and tokens already. Returns what is wrong
 * with the inputs, or NULL.
 */
const char *megrez_attention_understand(
    const megrez_attention_settings *settings, const megrez_attention_inputs *of, megrez_attention *all
);
/* Store the sequences' lengths after this step and their new tokens in `told` [2, B]; returns an error or NULL. */
const char *megrez_attention_lengths(const megrez_attention_inputs *of, megrez_attention *all, int32_t *told);
/* The present caches, outputs 1 and on: the past ones if both are bound to the same memory, otherwise a copy of them. */
ort_status *megrez_attention_caches(
    const ort_api *api, ort_context *context, const megrez_attention_inputs *of, megrez_attention *all
);

/* Types of the inputs, of the caches and of the outputs, of which there are 3, or 5 with int8 caches. */
ort_type megrez_attention_input_type(megrez_cache_format format, size_t index);
ort_type megrez_attention_output_type(megrez_cache_format format, size_t index);
size_t megrez_attention_outputs(megrez_cache_format format);

#endif
