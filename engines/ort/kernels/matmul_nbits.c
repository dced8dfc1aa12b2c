/* MatMulNBits for ONNX Runtime, in place of its own: a session that registers this library needs no other graph.
 *
 * It reads the weights where they lie, in the mapped file; nothing is repacked or copied. Inputs as in the operator's
 * specification: A, B, scales, zero_points, g_idx, bias; the last three may be absent, and g_idx has to be.
 */
#include "ort_abi.h"
#include "products.h"

#include <stdlib.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

enum { A, B, SCALES, ZERO_POINTS, G_IDX, BIAS, INPUTS };
enum { MOST_DIMENSIONS = 8, ROWS_A_PIECE = 64, INPUTS_A_PIECE = 4 };

typedef struct {
    const ort_api *api;
    megrez_weights weights;
} kernel;

typedef struct {
    const megrez_weights *weights;
    const float *values;
    megrez_inputs inputs;
    float *outputs;
} product;

static void round_piece(void *work, size_t piece) {
    product *all = work;
    const int64_t first = (int64_t)piece * INPUTS_A_PIECE, last = first + INPUTS_A_PIECE;
    for (int64_t i = first; i < last && i < all->inputs.count; i++)
        megrez_round(all->weights, all->values + i * all->weights->columns, &all->inputs, i);
}

static void multiply_piece(void *work, size_t piece) {
    product *all = work;
    const int64_t first = (int64_t)piece * ROWS_A_PIECE, last = first + ROWS_A_PIECE, rows = all->weights->rows;
    megrez_multiply(all->weights, &all->inputs, first, last < rows ? last : rows, all->outputs);
}

static ort_status *multiply(const ort_api *api, const ort_context *context, product *all) {
    const megrez_weights *weights = all->weights;
    const int64_t count = all->inputs.count, blocks = weights->blocks;
    const size_t codes = (size_t)(count * megrez_stride(weights));
    const size_t floats = (size_t)(count * blocks);
    char *room = malloc(codes + 2 * floats * sizeof(float));
    if (!room) return ort_create_status(api)(ORT_FAIL, "MatMulNBits: no memory for its rounded inputs");
    all->inputs.scales = (float *)room;
    all->inputs.sums = all->inputs.scales + floats;
    all->inputs.codes = (int8_t *)(all->inputs.sums + floats);
    const size_t pieces = (size_t)((count + INPUTS_A_PIECE - 1) / INPUTS_A_PIECE);
    ort_status *status = NULL;
    if (pieces == 1)
        round_piece(all, 0);
    else
        status = ort_parallel_for(api)(context, round_piece, pieces, 0, all);
    if (!status) {
        const size_t of_rows = (size_t)((weights->rows + ROWS_A_PIECE - 1) / ROWS_A_PIECE);
        status = ort_parallel_for(api)(context, multiply_piece, of_rows, 0, all);
    }
    free(room);
    return status;
}

static ort_status *read(
    const ort_api *api, const ort_context *context, size_t index, size_t present, const void **data
) {
    const ort_value *value = NULL;
    *data = NULL;
    if (index >= present) return NULL;
    ort_status *status = ort_input(api)(context, index, &value);
    return status || !value ? status : ort_data(api)((ort_value *)value, (void **)data);
}

/* The shape of A [.., columns] as that of the output [.., rows], and how many inputs there are. */
static ort_status *output_shape(
    const kernel *self, const ort_context *context, int64_t *dimensions, size_t *rank, int64_t *count
) {
    const ort_api *api = self->api;
    const ort_value *value = NULL;
    ort_shape *shape = NULL;
    ort_status *status = ort_input(api)(context, A, &value);
    if (status || (status = ort_shape_of(api)(value, &shape))) return status;
    status = ort_rank(api)(shape, rank);
    if (!status && (*rank < 1 || *rank > MOST_DIMENSIONS))
        status = ort_create_status(api)(ORT_INVALID_ARGUMENT, "MatMulNBits: A has none or more than 8 dimensions");
    if (!status) status = ort_dimensions(api)(shape, dimensions, *rank);
    ort_release_shape(api)(shape);
    if (status) return status;
    if (dimensions[*rank - 1] != self->weights.columns)
        return ort_create_status(api)(ORT_INVALID_ARGUMENT, "MatMulNBits: A has not K columns");
    *count = 1;
    for (size_t n = 0; n + 1 < *rank; n++) *count *= dimensions[n];
    dimensions[*rank - 1] = self->weights.rows;
    return NULL;
}

static ort_status *compute(void *opaque, ort_context *context) {
    const kernel *self = opaque;
    const ort_api *api = self->api;
    int64_t dimensions[MOST_DIMENSIONS];
    size_t rank, present;
    product all = {0};
    ort_status *status = output_shape(self, context, dimensions, &rank, &all.inputs.count);
    if (status || (status = ort_input_count(api)(context, &present))) return status;
    const void *found[INPUTS];
    for (size_t n = 0; n < INPUTS; n++)
        if ((status = read(api, context, n, present, &found[n]))) return status;
    ort_value *output = NULL;
    if ((status = ort_output(api)(context, 0, dimensions, rank, &output))) return status;
    if ((status = ort_data(api)(output, (void **)&all.outputs))) return status;
    if (found[G_IDX]) return ort_create_status(api)(ORT_INVALID_ARGUMENT, "MatMulNBits: g_idx is not taken");
    megrez_weights weights = self->weights;
    weights.codes = found[B], weights.scales = found[SCALES];
    weights.zero_points = found[ZERO_POINTS], weights.bias = found[BIAS];
    all.weights = &weights, all.values = found[A];
    return all.inputs.count ? multiply(api, context, &all) : NULL;
}

static ort_status *create(const ort_custom_op *op, const ort_api *api, const ort_kernel_info *info, void **made) {
    (void)op;
    megrez_weights weights = {0};
    ort_status *status = ort_attribute(api)(info, "N", &weights.rows);
    if (!status) status = ort_attribute(api)(info, "K", &weights.columns);
    if (!status) status = ort_attribute(api)(info, "bits", &weights.bits);
    if (!status) status = ort_attribute(api)(info, "block_size", &weights.block);
    if (status) return status;
    if (!megrez_takes(&weights))
        return ort_create_status(api)(ORT_INVALID_ARGUMENT, "MatMulNBits: 4 or 8 bits, blocks of 16 to 256 are taken");
    weights.blocks = (weights.columns + weights.block - 1) / weights.block;
    kernel *self = malloc(sizeof *self);
    if (!self) return ort_create_status(api)(ORT_FAIL, "MatMulNBits: no memory");
    *self = (kernel){api, weights};
    *made = self;
    return NULL;
}

static const char *name(const ort_custom_op *op) { return (void)op, "MatMulNBits"; }
static const char *provider(const ort_custom_op *op) { return (void)op, "CPUExecutionProvider"; }
static size_t input_count(const ort_custom_op *op) { return (void)op, INPUTS; }
static size_t output_count(const ort_custom_op *op) { return (void)op, 1; }
static int one(const ort_custom_op *op) { return (void)op, 1; }
static int memory(const ort_custom_op *op, size_t index) { return (void)op, (void)index, 0; }
static ort_presence always(const ort_custom_op *op, size_t index) { return (void)op, (void)index, ORT_REQUIRED; }
static ort_type output_type(const ort_custom_op *op, size_t index) { return (void)op, (void)index, ORT_FLOAT; }

static ort_presence input_presence(const ort_custom_op *op, size_t index) {
    (void)op;
    return index < ZERO_POINTS ? ORT_REQUIRED : ORT_OPTIONAL;
}

static ort_type input_type(const ort_custom_op *op, size_t index) {
    (void)op;
    return index == B || index == ZERO_POINTS ? ORT_UINT8 : index == G_IDX ? ORT_INT32 : ORT_FLOAT;
}

static const ort_custom_op MATMUL_NBITS = {
    .version = ORT_VERSION,
    .name = name,
    .provider = provider,
    .input_type = input_type,
    .input_count = input_count,
    .output_type = output_type,
    .output_count = output_count,
    .destroy = free,
    .input_presence = input_presence,
    .output_presence = always,
    .input_memory = memory,
    .variadic = {one, one, one, one},
    .create_or_fail = create,
    .compute_or_fail = compute,
    .first_version = one,
    .last_version = one,
};

/* Whether this processor runs these kernels: 0 no, 1 yes, 2 yes and ONNX Runtime has better ones for it. */
EXPORT int megrez_kernels(void) { return !megrez_runs() ? 0 : megrez_has_better() ? 2 : 1; }

/* What ONNX Runtime calls as it registers the library. The domain lives as long as the process. */
EXPORT ort_status *RegisterCustomOps(ort_session_options *options, const ort_api_base *base) {
    static ort_domain *domain;
    const ort_api *api = base->get_api(ORT_VERSION);
    ort_status *status = NULL;
    if (!api) return NULL; /* older than 1.17: its own kernels run */
    if (!domain) {
        ort_domain *made = NULL;
        if ((status = ort_create_domain(api)("com.microsoft", &made))) return status;
        if ((status = ort_add_op(api)(made, &MATMUL_NBITS))) return status;
        domain = made;
    }
    return ort_add_domain(api)(options, domain);
}
