/* What our operators share: reading inputs and attributes, refusing them, and the operators themselves. */
#ifndef MEGREZ_OPERATOR_H
#define MEGREZ_OPERATOR_H

#include "ort_abi.h"

#include <stdbool.h>

enum { MEGREZ_MOST_DIMENSIONS = 8 };

typedef struct {
    int64_t dimensions[MEGREZ_MOST_DIMENSIONS];
    size_t rank;
} megrez_shape;

/* Those that return a status return NULL where all went well. */
ort_status *megrez_refuse(const ort_api *api, const char *why);
/* For what ONNX Runtime's own kernels may take: the message says how to have them. */
ort_status *megrez_decline(const ort_api *api, const char *why);
/* The shape and data of an input; a rank of 0 and NULL for one that is absent. Either pointer may be NULL. */
ort_status *megrez_input(
    const ort_api *api, const ort_context *context, size_t index, megrez_shape *shape, const void **data
);
/* The same as the graph is opened, of an input that has to be a constant of it. */
ort_status *megrez_constant(
    const ort_api *api, const ort_kernel_info *info, size_t index, megrez_shape *shape, const void **data
);
/* Whether the graph gives a node this input. */
ort_status *megrez_find_given(const ort_api *api, const ort_kernel_info *info, size_t index, bool *given);
/* How many elements a shape has. */
int64_t megrez_elements(const megrez_shape *shape);
ort_status *megrez_output(
    const ort_api *api, ort_context *context, size_t index, const megrez_shape *shape, void **data
);
/* An attribute that may be absent: `value` is left as it is then. */
void megrez_optional(const ort_api *api, const ort_kernel_info *info, const char *name, int64_t *value);
void megrez_optional_float(const ort_api *api, const ort_kernel_info *info, const char *name, float *value);

extern const ort_custom_op MEGREZ_MATMUL_NBITS, MEGREZ_GROUP_QUERY_ATTENTION, MEGREZ_SWIGLU;

/* What all of ours say of themselves: float32 outputs in host memory, and the file's own name, create and compute. */
const char *megrez_provider(const ort_custom_op *op);
int megrez_one(const ort_custom_op *op);
int megrez_in_memory(const ort_custom_op *op, size_t index);
ort_type megrez_float(const ort_custom_op *op, size_t index);
ort_presence megrez_always(const ort_custom_op *op, size_t index);
#define MEGREZ_COMMON                                                                                \
    .version = ORT_VERSION, .name = name, .provider = megrez_provider, .output_type = megrez_float,  \
    .output_presence = megrez_always, .input_memory = megrez_in_memory,                              \
    .variadic = {megrez_one, megrez_one, megrez_one, megrez_one}, .create_or_fail = create,          \
    .compute_or_fail = compute, .first_version = megrez_one, .last_version = megrez_one

#endif
