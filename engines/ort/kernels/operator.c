/* Functions that our operators share, and the library's entry points for ONNX Runtime and Python. */
#include "operator.h"
#include "products.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

ort_status *megrez_refuse(const ort_api *api, const char *why) {
    return ort_create_status(api)(ORT_INVALID_ARGUMENT, why);
}

ort_status *megrez_decline(const ort_api *api, const char *why) {
    char text[256];
    snprintf(text, sizeof text, "%s; MEGREZ_KERNELS=0 has ONNX Runtime's own kernels", why);
    return megrez_refuse(api, text);
}

static ort_status *shape_of(const ort_api *api, const ort_value *value, megrez_shape *found) {
    ort_shape *shape = NULL;
    ort_status *status = ort_shape_of(api)(value, &shape);
    if (status) return status;
    status = ort_rank(api)(shape, &found->rank);
    if (!status && found->rank > MEGREZ_MOST_DIMENSIONS) status = megrez_refuse(api, "an input has over 8 dimensions");
    if (!status) status = ort_dimensions(api)(shape, found->dimensions, found->rank);
    ort_release_shape(api)(shape);
    return status;
}

ort_status *megrez_input(
    const ort_api *api, const ort_context *context, size_t index, megrez_shape *shape, const void **data
) {
    const ort_value *value = NULL;
    size_t present;
    if (data) *data = NULL;
    if (shape) shape->rank = 0;
    ort_status *status = ort_input_count(api)(context, &present);
    if (status || index >= present) return status;
    status = ort_input(api)(context, index, &value);
    if (!status && value && shape) status = shape_of(api, value, shape);
    if (!status && value && data) status = ort_data(api)((ort_value *)value, (void **)data);
    return status;
}

ort_status *megrez_find_given(const ort_api *api, const ort_kernel_info *info, size_t index, bool *given) {
    size_t count, length = 1; /* omitted inputs have an empty name, except at the end */
    ort_status *status = ort_given_count(api)(info, &count);
    if (!status && index < count) status = ort_input_name(api)(info, index, NULL, &length);
    *given = length > 1; /* includes the final zero */
    return status;
}

ort_status *megrez_constant(
    const ort_api *api, const ort_kernel_info *info, size_t index, megrez_shape *shape, const void **data
) {
    const ort_value *value = NULL;
    int is_constant = 0;
    bool given;
    *data = NULL, shape->rank = 0;
    ort_status *status = megrez_find_given(api, info, index, &given);
    if (status || !given) return status;
    status = ort_constant(api)(info, index, &is_constant, &value);
    if (status) return status;
    if (!is_constant || !value) return megrez_decline(api, "weights are taken that are constants of the graph");
    status = shape_of(api, value, shape);
    return status ? status : ort_data(api)((ort_value *)value, (void **)data);
}

int64_t megrez_elements(const megrez_shape *shape) {
    int64_t count = 1;
    for (size_t n = 0; n < shape->rank; n++) count *= shape->dimensions[n];
    return count;
}

ort_status *megrez_output(
    const ort_api *api, ort_context *context, size_t index, const megrez_shape *shape, void **data
) {
    ort_value *value = NULL;
    ort_status *status = ort_output(api)(context, index, shape->dimensions, shape->rank, &value);
    return status ? status : ort_data(api)(value, data);
}

/* Whether an attribute was found; releases the status. */
static bool is_there(const ort_api *api, ort_status *status) {
    if (status) ort_release_status(api)(status);
    return !status;
}

void megrez_optional(const ort_api *api, const ort_kernel_info *info, const char *name, int64_t *value) {
    int64_t found;
    if (is_there(api, ort_attribute(api)(info, name, &found))) *value = found;
}

void megrez_optional_float(const ort_api *api, const ort_kernel_info *info, const char *name, float *value) {
    float found;
    if (is_there(api, ort_float_attribute(api)(info, name, &found))) *value = found;
}

const char *megrez_provider(const ort_custom_op *op) { return (void)op, "CPUExecutionProvider"; }
int megrez_one(const ort_custom_op *op) { return (void)op, 1; }
int megrez_in_memory(const ort_custom_op *op, size_t index) { return (void)op, (void)index, 0; }
ort_type megrez_float(const ort_custom_op *op, size_t index) { return (void)op, (void)index, ORT_FLOAT; }
ort_presence megrez_always(const ort_custom_op *op, size_t index) { return (void)op, (void)index, ORT_REQUIRED; }

/* Which instructions our products use here, a megrez_instructions. */
EXPORT int megrez_kernels(void) { return megrez_instructions_here(); }

static ort_status *add(
    const ort_api *api, ort_session_options *options, const char *name, const ort_custom_op *const *ops, size_t count,
    ort_domain **domain
) {
    ort_status *status = NULL;
    if (!*domain) {
        ort_domain *made = NULL;
        if ((status = ort_create_domain(api)(name, &made))) return status;
        for (size_t n = 0; n < count; n++)
            if ((status = ort_add_op(api)(made, ops[n]))) return status;
        *domain = made;
    }
    return ort_add_domain(api)(options, *domain);
}

/* Whether our operators replace ONNX Runtime's here, as MEGREZ_KERNELS and the processor have it: see custom_ops.py. */
EXPORT int megrez_replaces(void) {
    const char *setting = getenv("MEGREZ_KERNELS");
    return megrez_runs() && !(setting && (!strcmp(setting, "0") || !strcmp(setting, "portable")));
}

/* The entry point that ONNX Runtime calls to register the library. The domains are never freed.
 *
 * Attention over caches that ONNX Runtime has no kernel for is always registered. With the setting "attention", only
 * the first of each list is registered, which has no products.
 */
EXPORT ort_status *RegisterCustomOps(ort_session_options *options, const ort_api_base *base) {
    static const ort_custom_op *const cached[] = {&MEGREZ_ATTENTION_FLOAT16, &MEGREZ_ATTENTION_INT8};
    static const ort_custom_op *const theirs[] = {&MEGREZ_GROUP_QUERY_ATTENTION, &MEGREZ_MATMUL_NBITS};
    static const ort_custom_op *const ours[] = {
        &MEGREZ_SWIGLU, &MEGREZ_MEANS_MATMUL_NBITS, &MEGREZ_DECODER_LAYER, &MEGREZ_DECODER_LAYER_FLOAT16,
        &MEGREZ_DECODER_LAYER_INT8
    };
    static ort_domain *microsoft, *megrez, *cache;
    const ort_api *api = base->get_api(ORT_VERSION);
    if (!api) return NULL; /* ONNX Runtime before 1.17: its own kernels run */
    ort_status *status = add(api, options, "megrez.cache", cached, sizeof cached / sizeof *cached, &cache);
    if (status || !megrez_replaces()) return status;
    const char *setting = getenv("MEGREZ_KERNELS");
    const bool products = !setting || strcmp(setting, "attention");
    status = add(api, options, "com.microsoft", theirs, products ? sizeof theirs / sizeof *theirs : 1, &microsoft);
    return status ? status : add(api, options, "megrez", ours, products ? sizeof ours / sizeof *ours : 1, &megrez);
}
