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

/* An operator for one format of the cache. A source with these defines create_for(format, api, info, made),
 * input_type_of(format, index), input_count, input_presence, compute and destroy.
 */
#define MEGREZ_OF_CACHE(symbol, cache, called)                                                                  \
    static const char *name_##cache(const ort_custom_op *op) { return (void)op, called; }                       \
    static ort_status *create_##cache(const ort_custom_op *op, const ort_api *api, const ort_kernel_info *info, \
                                      void **made) {                                                            \
        return (void)op, create_for(cache, api, info, made);                                                    \
    }                                                                                                           \
    static ort_type input_##cache(const ort_custom_op *op, size_t index) {                                      \
        return (void)op, input_type_of(cache, index);                                                           \
    }                                                                                                           \
    static ort_type output_##cache(const ort_custom_op *op, size_t index) {                                     \
        return (void)op, megrez_attention_output_type(cache, index);                                            \
    }                                                                                                           \
    static size_t outputs_##cache(const ort_custom_op *op) {                                                    \
        return (void)op, megrez_attention_outputs(cache);                                                       \
    }                                                                                                           \
    const ort_custom_op symbol = {                                                                              \
        MEGREZ_SHARED,                                                                                          \
        .name = name_##cache,                                                                                   \
        .create_or_fail = create_##cache,                                                                       \
        .input_type = input_##cache,                                                                            \
        .output_type = output_##cache,                                                                          \
        .input_count = input_count,                                                                             \
        .output_count = outputs_##cache,                                                                        \
        .destroy = destroy,                                                                                     \
        .input_presence = input_presence,                                                                       \
    }

#endif
