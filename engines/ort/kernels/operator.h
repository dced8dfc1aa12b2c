/* Shared by our operators: reading inputs and attributes, rejecting them, and the operators' declarations. */
#ifndef MEGREZ_OPERATOR_H
#define MEGREZ_OPERATOR_H

#include "ort_abi.h"

#include <stdbool.h>

enum { MEGREZ_MOST_DIMENSIONS = 8 };

typedef struct {
    int64_t dimensions[MEGREZ_MOST_DIMENSIONS];
    size_t rank;
} megrez_shape;

/* Functions that return a status return NULL on success. */
ort_status *megrez_refuse(const ort_api *api, const char *why);
/* Reject what ONNX Runtime's own kernels may support: the message says how to enable them. */
ort_status *megrez_decline(const ort_api *api, const char *why);
/* The shape and data of an input; a rank of 0 and NULL for one that is absent. Either pointer may be NULL. */
ort_status *megrez_input(
    const ort_api *api, const ort_context *context, size_t index, megrez_shape *shape, const void **data
);
/* The same at session creation, for an input that must be an initializer. */
ort_status *megrez_constant(
    const ort_api *api, const ort_kernel_info *info, size_t index, megrez_shape *shape, const void **data
);
/* Whether a node has this input. */
ort_status *megrez_find_given(const ort_api *api, const ort_kernel_info *info, size_t index, bool *given);
/* The number of elements of a shape. */
int64_t megrez_elements(const megrez_shape *shape);
ort_status *megrez_output(
    const ort_api *api, ort_context *context, size_t index, const megrez_shape *shape, void **data
);
/* Read an optional attribute: `value` is unchanged if it is absent. */
void megrez_optional(const ort_api *api, const ort_kernel_info *info, const char *name, int64_t *value);
void megrez_optional_float(const ort_api *api, const ort_kernel_info *info, const char *name, float *value);

extern const ort_custom_op MEGREZ_MATMUL_NBITS, MEGREZ_MEANS_MATMUL_NBITS, MEGREZ_GROUP_QUERY_ATTENTION, MEGREZ_SWIGLU,
    MEGREZ_ATTENTION_FLOAT16, MEGREZ_ATTENTION_INT8, MEGREZ_DECODER_LAYER, MEGREZ_DECODER_LAYER_FLOAT16,
    MEGREZ_DECODER_LAYER_INT8;

/* Fields that all our operators share, for outputs in host memory. */
const char *megrez_provider(const ort_custom_op *op);
int megrez_one(const ort_custom_op *op);
int megrez_in_memory(const ort_custom_op *op, size_t index);
ort_type megrez_float(const ort_custom_op *op, size_t index);
ort_presence megrez_always(const ort_custom_op *op, size_t index);
#define MEGREZ_SHARED                                                                                \
    .version = ORT_VERSION, .provider = megrez_provider, .output_presence = megrez_always,           \
    .input_memory = megrez_in_memory, .variadic = {megrez_one, megrez_one, megrez_one, megrez_one},  \
    .compute_or_fail = compute, .first_version = megrez_one, .last_version = megrez_one
/* And those of operators with float32 outputs; each source defines name, create, compute. */
#define MEGREZ_COMMON MEGREZ_SHARED, .name = name, .output_type = megrez_float, .create_or_fail = create

#endif
