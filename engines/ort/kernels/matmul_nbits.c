/* MatMulNBits in place of ONNX Runtime's own, for the same graphs, and MeansMatMulNBits, which multiplies A followed by
 * the means of A's blocks, for matrices whose last columns are their blocks' minima: graphs define it as a function of
 * standard operators, which runs without this kernel.
 *
 * It reads the weights in the mapped file, or in a copy in huge pages; they are not repacked. Inputs as in the operator's
 * specification: A, B, scales, zero_points, g_idx, bias; zero_points and bias are optional, g_idx must be
 * absent. All but A are initializers of the graph. A is rounded to int8, which is accuracy_level 4.
 */
#include "operator.h"
#include "products.h"
#include "weights.h"

#include <stdlib.h>

enum { A, B, SCALES, ZERO_POINTS, G_IDX, BIAS, INPUTS };
enum { ROWS_A_PIECE = 64, ACCURACY_LEVEL = 4 };

typedef struct {
    const ort_api *api;
    megrez_weights weights;
    bool means;
} kernel;

typedef struct {
    const megrez_weights *weights;
    int64_t columns; /* of A */
    const float *values;
    megrez_inputs inputs;
    float *outputs;
} product;

static void round_piece(void *work, size_t piece) {
    product *all = work;
    const int64_t each = megrez_inputs_a_piece(all->inputs.count), first = (int64_t)piece * each, last = first + each;
    for (int64_t i = first; i < last && i < all->inputs.count; i++)
        megrez_round(all->weights, all->values + i * all->columns, all->columns, &all->inputs, i);
}

static void multiply_piece(void *work, size_t piece) {
    product *all = work;
    const int64_t first = (int64_t)piece * ROWS_A_PIECE, last = first + ROWS_A_PIECE, rows = all->weights->rows;
    megrez_multiply(all->weights, &all->inputs, first, last < rows ? last : rows, all->outputs);
}

static ort_status *multiply(const ort_api *api, const ort_context *context, product *all) {
    const megrez_weights *weights = all->weights;
    const int64_t count = megrez_with_padding(all->inputs.count), each = megrez_inputs_a_piece(all->inputs.count);
    const size_t codes = (size_t)(count * megrez_stride(weights));
    const size_t floats = (size_t)(count * weights->blocks);
    char *room = malloc(codes + 2 * floats * sizeof(float) + 64);
    if (!room) return ort_create_status(api)(ORT_FAIL, "MatMulNBits: no memory for its rounded inputs");
    all->inputs.codes = (int8_t *)room + (64 - (uintptr_t)room % 64) % 64; /* on cache lines of their own */
    all->inputs.scales = (float *)(all->inputs.codes + codes);
    all->inputs.sums = all->inputs.scales + floats;
    const size_t pieces = (size_t)((count + each - 1) / each);
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

/* Replace A's shape [.., columns] by the output's, [.., rows]; sets the number of inputs. */
static const char *output_shape(product *all, megrez_shape *shape) {
    if (!shape->rank || shape->dimensions[shape->rank - 1] != all->columns) return "MatMulNBits: A has not K columns";
    all->inputs.count = 1;
    for (size_t n = 0; n + 1 < shape->rank; n++) all->inputs.count *= shape->dimensions[n];
    shape->dimensions[shape->rank - 1] = all->weights->rows;
    return NULL;
}

static ort_status *compute(void *opaque, ort_context *context) {
    const kernel *self = opaque;
    const ort_api *api = self->api;
    const int64_t columns = self->weights.columns, block = self->weights.block;
    product all = {.weights = &self->weights, .columns = self->means ? columns / (block + 1) * block : columns};
    megrez_shape shape;
    const void *values = NULL;
    void *outputs = NULL;
    ort_status *status = megrez_input(api, context, A, &shape, &values);
    if (status) return status;
    const char *wrong = output_shape(&all, &shape);
    if (wrong) return megrez_refuse(api, wrong);
    status = megrez_output(api, context, 0, &shape, &outputs);
    if (status || !all.inputs.count) return status;
    all.values = values, all.outputs = outputs;
    return multiply(api, context, &all);
}

static ort_status *understand(const ort_api *api, const ort_kernel_info *info, megrez_weights *weights) {
    static const size_t inputs[] = {B, SCALES, ZERO_POINTS, BIAS};
    int64_t accuracy_level = 0;
    megrez_shape shape;
    const void *order;
    megrez_optional(api, info, "accuracy_level", &accuracy_level);
    if (accuracy_level != ACCURACY_LEVEL) return megrez_decline(api, "MatMulNBits: accuracy_level 4 is taken");
    ort_status *status = megrez_constant(api, info, G_IDX, &shape, &order);
    if (!status && order) status = megrez_decline(api, "MatMulNBits: g_idx is not taken");
    return status ? status : megrez_read_weights(api, info, "", inputs, weights);
}

static ort_status *create(const ort_custom_op *op, const ort_api *api, const ort_kernel_info *info, void **made) {
    kernel found = {.api = api, .means = op == &MEGREZ_MEANS_MATMUL_NBITS};
    ort_status *status = understand(api, info, &found.weights);
    if (status) return status;
    if (found.means && found.weights.columns % (found.weights.block + 1)) {
        megrez_release_weights(&found.weights);
        return megrez_refuse(api, "MeansMatMulNBits: K is not a multiple of block_size + 1");
    }
    kernel *self = malloc(sizeof *self);
    if (!self) {
        megrez_release_weights(&found.weights);
        return ort_create_status(api)(ORT_FAIL, "MatMulNBits: no memory");
    }
    *self = found;
    *made = self;
    return NULL;
}

static void destroy(void *made) {
    kernel *self = made;
    megrez_release_weights(&self->weights);
    free(self);
}

static const char *name(const ort_custom_op *op) {
    return op == &MEGREZ_MEANS_MATMUL_NBITS ? "MeansMatMulNBits" : "MatMulNBits";
}

static size_t input_count(const ort_custom_op *op) { return (void)op, INPUTS; }
static size_t output_count(const ort_custom_op *op) { return (void)op, 1; }

static ort_presence input_presence(const ort_custom_op *op, size_t index) {
    (void)op;
    return index < ZERO_POINTS ? ORT_REQUIRED : ORT_OPTIONAL;
}

static ort_type input_type(const ort_custom_op *op, size_t index) {
    (void)op;
    return index == B || index == ZERO_POINTS ? ORT_UINT8 : index == G_IDX ? ORT_INT32 : ORT_FLOAT;
}

#define PRODUCT                                                                                \
    MEGREZ_COMMON, .input_type = input_type, .input_count = input_count, .output_count = output_count, \
    .destroy = destroy, .input_presence = input_presence

const ort_custom_op MEGREZ_MATMUL_NBITS = {PRODUCT};
const ort_custom_op MEGREZ_MEANS_MATMUL_NBITS = {PRODUCT};
