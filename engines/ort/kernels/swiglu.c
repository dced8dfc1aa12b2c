/* SwiGLU: from [.., 2 n] to [.., n], silu of the first half times the second half.
 *
 * ONNX Runtime has no such operator: graphs define it as a function of standard ones, which runs without this kernel.
 */
#include "operator.h"
#include "vectors.h"

enum { COLUMNS_A_PIECE = 2048 };

typedef struct {
    int64_t rows, columns, pieces; /* pieces of one row */
    const float *input;
    float *output;
} product;

static void multiply(void *opaque, size_t piece) {
    const product *all = opaque;
    const int64_t row = (int64_t)piece / all->pieces, first = (int64_t)piece % all->pieces * COLUMNS_A_PIECE;
    const int64_t left = all->columns - first, count = left < COLUMNS_A_PIECE ? left : COLUMNS_A_PIECE;
    const float *gate = all->input + 2 * row * all->columns + first;
    megrez_swiglu(gate, gate + all->columns, count, all->output + row * all->columns + first);
}

static ort_status *compute(void *opaque, ort_context *context) {
    const ort_api *api = opaque;
    megrez_shape shape;
    const void *input;
    void *output = NULL;
    ort_status *status = megrez_input(api, context, 0, &shape, &input);
    if (status) return status;
    if (!shape.rank || shape.dimensions[shape.rank - 1] % 2)
        return megrez_refuse(api, "SwiGLU: the input has no two halves");
    product all = {.rows = 1, .columns = shape.dimensions[shape.rank - 1] /= 2, .input = input};
    for (size_t n = 0; n + 1 < shape.rank; n++) all.rows *= shape.dimensions[n];
    if ((status = megrez_output(api, context, 0, &shape, &output))) return status;
    all.output = output;
    all.pieces = (all.columns + COLUMNS_A_PIECE - 1) / COLUMNS_A_PIECE;
    const size_t pieces = (size_t)(all.rows * all.pieces);
    if (pieces > 1) return ort_parallel_for(api)(context, multiply, pieces, 0, &all);
    if (pieces) multiply(&all, 0);
    return NULL;
}

static ort_status *create(const ort_custom_op *op, const ort_api *api, const ort_kernel_info *info, void **made) {
    (void)op, (void)info;
    *made = (void *)api;
    return NULL;
}

static void destroy(void *made) { (void)made; }
static const char *name(const ort_custom_op *op) { return (void)op, "SwiGLU"; }
static size_t one(const ort_custom_op *op) { return (void)op, 1; }

const ort_custom_op MEGREZ_SWIGLU = {
    MEGREZ_COMMON,
    .input_type = megrez_float,
    .input_count = one,
    .output_count = one,
    .destroy = destroy,
    .input_presence = megrez_always,
};
