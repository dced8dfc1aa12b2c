/* What our operators share, and what ONNX Runtime and Python call: the library's two entries. */
#include "operator.h"
#include "products.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

ort_status *megrez_refuse(const ort_api *api, const char *why) {
    return ort_create_status(api)(ORT_INVALID_ARGUMENT, why);
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

ort_status *megrez_output(
    const ort_api *api, ort_context *context, size_t index, const megrez_shape *shape, void **data
) {
    ort_value *value = NULL;
    ort_status *status = ort_output(api)(context, index, shape->dimensions, shape->rank, &value);
    return status ? status : ort_data(api)(value, data);
}

/* Whether an attribute was found; a status that says it was not is released. */
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

/* Whether this processor runs these kernels: 0 no, 1 yes, 2 yes and ONNX Runtime has better ones for it. */
EXPORT int megrez_kernels(void) { return !megrez_runs() ? 0 : megrez_has_better() ? 2 : 1; }

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

/* What ONNX Runtime calls as it registers the library. The domains live as long as the process. */
EXPORT ort_status *RegisterCustomOps(ort_session_options *options, const ort_api_base *base) {
    static const ort_custom_op *const theirs[] = {&MEGREZ_MATMUL_NBITS, &MEGREZ_GROUP_QUERY_ATTENTION};
    static const ort_custom_op *const ours[] = {&MEGREZ_SWIGLU};
    static ort_domain *microsoft, *megrez;
    const ort_api *api = base->get_api(ORT_VERSION);
    if (!api) return NULL; /* older than 1.17: its own kernels run */
    ort_status *status = add(api, options, "com.microsoft", theirs, sizeof theirs / sizeof *theirs, &microsoft);
    return status ? status : add(api, options, "megrez", ours, sizeof ours / sizeof *ours, &megrez);
}
