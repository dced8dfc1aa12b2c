/* DecoderLayer: a whole layer of a Llama-like decoder as one operator, for quantised weights.
 *
 * hidden [B, T, width] -> hidden + attention(norm(hidden)), and to that + mlp(norm of it), with a product of gate and up
 * together. For small models, ONNX Runtime's cost of a node and the start of threads for each are a large part of a step:
 * here threads are started once for all phases of a layer. Graphs define the operator as a function of the operators
 * that it replaces, which runs without this kernel.
 *
 * Inputs: GroupQueryAttention's, but that query, key and value are hidden and the weights of the two norms; then codes,
 * scales, zero_points and bias of each product. The query product may contain key, or key and value: those are absent.
 * Attributes: GroupQueryAttention's, epsilon, and MatMulNBits' of each product after its name. All weights are
 * initializers. A product may have the means of its input's blocks as last columns, as in MeansMatMulNBits.
 *
 * Nothing is computed for padding, and its places in the output are not written: operators behind this one must not mix
 * tokens of a sequence with padding.
 */
#include "attention_inputs.h"
#include "lines.h"
#include "phases.h"
#include "scratch.h"
#include "vectors.h"
#include "weights.h"

#include <stdlib.h>
#include <string.h>

enum { HIDDEN = QUERY, ATTENTION_NORM = KEY, MLP_NORM = VALUE };
enum { QUERY_PRODUCT, KEY_PRODUCT, VALUE_PRODUCT, OUTPUT, GATE_UP, DOWN, PRODUCTS };
enum { WEIGHT_INPUTS = 4, INPUTS = ATTENTION_INPUTS + PRODUCTS * WEIGHT_INPUTS };
enum { ROWS_A_PIECE = 64, PROJECTIONS = 3 };

typedef struct {
    const ort_api *api;
    megrez_attention_settings settings;
    megrez_attention_inputs constants; /* norms and tables of positions */
    float epsilon;
    int64_t width; /* of the hidden state */
    megrez_weights products[PRODUCTS]; /* without rows where absent */
} kernel;

/* One step. */
typedef struct {
    const kernel *self;
    int64_t count; /* tokens of all sequences without padding; hidden and output have it, all other vectors do not */
    const float *hidden;
    float *output;     /* the residual stream */
    float *normalised; /* [count, width], and what is added to the residual stream */
    const int32_t *places; /* of the `count` tokens among all, which include padding; NULL if there is none */
    float *projected[PROJECTIONS], *attended, *gated;
    megrez_inputs inputs[PRODUCTS];
    megrez_attention attention;
} layer;

static int64_t pieces_of(int64_t count, int64_t each) { return (count + each - 1) / each; }

/* Whether two products read the same quantised inputs. */
static bool alike(const megrez_weights *a, const megrez_weights *b) {
    return a->bits == b->bits && a->block == b->block && a->columns == b->columns;
}

static void multiply(const layer *all, int product, int64_t piece, float *outputs) {
    const megrez_weights *weights = all->self->products + product;
    const int64_t first = piece * ROWS_A_PIECE, last = megrez_least(first + ROWS_A_PIECE, weights->rows);
    megrez_multiply(weights, all->inputs + product, first, last, outputs);
}

/* Where a token's vectors begin in the residual stream, in floats. */
static int64_t place_of(const layer *all, int64_t token) {
    return (all->places ? all->places[token] : token) * all->self->width;
}

/* The same columns of all tokens: added to the residual stream. */
static void multiply_and_add(const layer *all, int product, int64_t piece, const float *residual) {
    const int64_t first = piece * ROWS_A_PIECE, count = megrez_least(ROWS_A_PIECE, all->self->width - first);
    multiply(all, product, piece, all->normalised);
    for (int64_t token = 0; token < all->count; token++) {
        const int64_t at = place_of(all, token) + first;
        megrez_add(residual + at, all->normalised + token * all->self->width + first, count, all->output + at);
    }
}

static void normalise(const layer *all, const float *from, int norm, int64_t token) {
    const kernel *self = all->self;
    float *to = all->normalised + token * self->width;
    megrez_rms_norm(from + place_of(all, token), self->constants.data[norm], self->epsilon, self->width, to);
}

static void round_input(const layer *all, int product, const float *input, int64_t columns, int64_t token) {
    megrez_round(all->self->products + product, input, columns, all->inputs + product, token);
}

/* Each token of a piece. */
#define EACH_TOKEN(all, piece, token)                                                          \
    for (int64_t each = megrez_inputs_a_piece((all)->count), token = (piece) * each,                \
                 end = megrez_least(token + each, (all)->count); token < end; token++)

static void prepare_projections(void *work, int64_t piece) {
    const layer *all = work;
    const kernel *self = all->self;
    EACH_TOKEN(all, piece, token) {
        normalise(all, all->hidden, ATTENTION_NORM, token);
        for (int n = 0; n < PROJECTIONS; n++)
            if (self->products[n].rows && (!n || all->inputs[n].codes != all->inputs[0].codes))
                round_input(all, n, all->normalised + token * self->width, self->width, token);
    }
}

static void project(void *work, int64_t piece) {
    const layer *all = work;
    for (int n = 0; n < PROJECTIONS; n++) {
        const int64_t pieces = pieces_of(all->self->products[n].rows, ROWS_A_PIECE);
        if (piece < pieces) {
            multiply(all, n, piece, all->projected[n]);
            return;
        }
        piece -= pieces;
    }
}

static void append(void *work, int64_t token) {
    const layer *all = work;
    all->self->settings.passes->append(&all->attention, token);
}

static void attend(void *work, int64_t piece) {
    const layer *all = work;
    all->self->settings.passes->attend(&all->attention, piece);
}

/* Whether pieces have so many tokens that what comes before rounding is a phase of its own, token by token. */
static bool in_large_pieces(const layer *all) { return megrez_are_grouped(all->count); }

static void join(void *work, int64_t token) {
    const layer *all = work;
    if (all->attention.parts > 1) all->self->settings.passes->join(&all->attention, token);
}

static void prepare_output(void *work, int64_t piece) {
    const layer *all = work;
    const int64_t columns = all->attention.heads * all->attention.width;
    EACH_TOKEN(all, piece, token) {
        if (!in_large_pieces(all)) join(work, token);
        round_input(all, OUTPUT, all->attended + token * columns, columns, token);
    }
}

static void add_attention(void *work, int64_t piece) {
    const layer *all = work;
    multiply_and_add(all, OUTPUT, piece, all->hidden);
}

static void prepare_mlp(void *work, int64_t piece) {
    const layer *all = work;
    EACH_TOKEN(all, piece, token) {
        normalise(all, all->output, MLP_NORM, token);
        round_input(all, GATE_UP, all->normalised + token * all->self->width, all->self->width, token);
    }
}

static void gate_and_up(void *work, int64_t piece) {
    const layer *all = work;
    multiply(all, GATE_UP, piece, all->gated);
}

static void activate(void *work, int64_t token) {
    const layer *all = work;
    const int64_t columns = all->self->products[GATE_UP].rows / 2;
    float *gate = all->gated + 2 * token * columns;
    megrez_swiglu(gate, gate + columns, columns, gate);
}

static void prepare_down(void *work, int64_t piece) {
    const layer *all = work;
    const int64_t columns = all->self->products[GATE_UP].rows / 2;
    EACH_TOKEN(all, piece, token) {
        if (!in_large_pieces(all)) activate(work, token);
        round_input(all, DOWN, all->gated + 2 * token * columns, columns, token);
    }
}

static void add_mlp(void *work, int64_t piece) {
    const layer *all = work;
    multiply_and_add(all, DOWN, piece, all->output);
}

static ort_status *run_phases(const layer *all, const ort_context *context) {
    const int64_t rows = pieces_of(all->count, megrez_inputs_a_piece(all->count));
    const int64_t wide = pieces_of(all->self->width, ROWS_A_PIECE), apart = in_large_pieces(all) ? all->count : 0;
    int64_t projections = 0;
    for (int n = 0; n < PROJECTIONS; n++) projections += pieces_of(all->self->products[n].rows, ROWS_A_PIECE);
    const megrez_phase phases[] = {
        {prepare_projections, rows},
        {project, projections},
        {append, all->count},
        {attend, megrez_attention_pieces(&all->attention)},
        {join, apart},
        {prepare_output, rows},
        {add_attention, wide},
        {prepare_mlp, rows},
        {gate_and_up, pieces_of(all->self->products[GATE_UP].rows, ROWS_A_PIECE)},
        {activate, apart},
        {prepare_down, rows},
        {add_mlp, wide},
    };
    return megrez_run_phases(all->self->api, context, phases, sizeof phases / sizeof *phases, (void *)all);
}

/* Pieces of one allocation, each on cache lines of its own; without a base they only count. */
typedef struct {
    char *base;
    size_t used;
} room;

static void *take(room *from, int64_t bytes) {
    void *found = from->base ? from->base + from->used : NULL;
    from->used += megrez_on_lines((size_t)bytes);
    return found;
}

static void take_inputs(layer *all, room *from) {
    for (int n = 0; n < PRODUCTS; n++) {
        const megrez_weights *weights = all->self->products + n;
        megrez_inputs *inputs = all->inputs + n;
        if (!weights->rows) continue;
        if (n && n < PROJECTIONS && alike(weights, all->self->products)) {
            *inputs = all->inputs[0];
            continue;
        }
        const int64_t padded = megrez_with_padding(all->count);
        const int64_t floats = padded * weights->blocks * (int64_t)sizeof(float);
        inputs->count = all->count;
        inputs->codes = take(from, padded * megrez_stride(weights));
        inputs->scales = take(from, floats), inputs->sums = take(from, floats);
    }
}

static void take_all(layer *all, room *from, size_t attention_floats) {
    const kernel *self = all->self;
    const int64_t each = all->count * (int64_t)sizeof(float);
    float *attention = take(from, (int64_t)(attention_floats * sizeof(float)));
    all->normalised = take(from, each * self->width);
    for (int n = 0; n < PROJECTIONS; n++) all->projected[n] = take(from, each * self->products[n].rows);
    all->attended = take(from, each * all->attention.heads * all->attention.width);
    all->gated = take(from, each * self->products[GATE_UP].rows);
    take_inputs(all, from);
    if (from->base) megrez_attention_use(&all->attention, attention);
}

/* Where the products write the queries, new keys and values. */
static void connect(layer *all) {
    const megrez_weights *products = all->self->products;
    megrez_attention *attention = &all->attention;
    const float **const to[] = {&attention->queries, &attention->new_keys, &attention->new_values};
    int64_t *const strides[] = {&attention->query_stride, &attention->key_stride, &attention->value_stride};
    const int64_t wide = attention->heads * attention->width, narrow = attention->kv_heads * attention->width;
    int product = 0;
    for (int64_t n = 0, column = 0; n < PROJECTIONS; n++) {
        while (column == products[product].rows) product++, column = 0;
        *to[n] = all->projected[product] + column, *strides[n] = products[product].rows;
        column += n ? narrow : wide;
    }
    attention->outputs = all->attended;
}

static ort_status *run(layer *all, const ort_context *context) {
    const size_t floats = megrez_attention_plan(&all->attention);
    room from = {0};
    take_all(all, &from, floats);
    from = (room){.base = megrez_scratch_take(from.used)};
    if (!from.base)
        return ort_create_status(all->self->api)(ORT_FAIL, "DecoderLayer: no memory for its intermediate values");
    char *const base = from.base;
    take_all(all, &from, floats);
    connect(all);
    ort_status *status = run_phases(all, context);
    megrez_scratch_return(base);
    return status;
}

/* Whether a product takes `columns`, with or without the means of their blocks. */
static bool takes(const megrez_weights *weights, int64_t columns) {
    const int64_t means = columns % weights->block ? 0 : columns / weights->block;
    return weights->columns == columns || (means && weights->columns == columns + means);
}

/* What is wrong with the products' shapes, or NULL. */
static const char *judge(const kernel *self, const megrez_attention *attention) {
    const megrez_weights *products = self->products;
    const int64_t wide = attention->heads * attention->width, narrow = attention->kv_heads * attention->width;
    const int64_t query = products[QUERY_PRODUCT].rows, key = products[KEY_PRODUCT].rows;
    const int64_t value = products[VALUE_PRODUCT].rows;
    const bool packed = query == wide + 2 * narrow && !key && !value;
    const bool keys_packed = query == wide + narrow && !key && value == narrow;
    const bool values_packed = query == wide && key == 2 * narrow && !value;
    if (!packed && !keys_packed && !values_packed && !(query == wide && key == narrow && value == narrow))
        return "DecoderLayer: the products of query, key and value have not the rows of all heads";
    for (int n = 0; n < PROJECTIONS; n++)
        if (products[n].rows && !takes(products + n, self->width)) return "DecoderLayer: a projection has not hidden's K";
    if (products[OUTPUT].rows != self->width || products[DOWN].rows != self->width || products[GATE_UP].rows % 2)
        return "DecoderLayer: output or down has not hidden's N, or gate_up no halves";
    if (!takes(products + OUTPUT, wide) || !takes(products + GATE_UP, self->width) ||
        !takes(products + DOWN, products[GATE_UP].rows / 2))
        return "DecoderLayer: output, gate_up or down has another K than its input";
    return NULL;
}

/* Leaves the padding out, if there is some: `room` has firsts [B], and owners and places of B * T tokens at most. */
static void pack(layer *all, int32_t *room) {
    megrez_attention *attention = &all->attention;
    int64_t valid = 0;
    for (int64_t row = 0; row < attention->rows; row++) valid += attention->fresh[row];
    const bool padded = valid < attention->rows * attention->tokens;
    all->count = attention->count = valid;
    if (!padded) return;
    int32_t *firsts = room, *owners = firsts + attention->rows, *places = owners + valid, token = 0;
    for (int32_t row = 0; row < attention->rows; row++) {
        firsts[row] = token;
        for (int32_t n = 0; n < attention->fresh[row]; n++, token++)
            owners[token] = row, places[token] = row * (int32_t)attention->tokens + n;
    }
    attention->firsts = firsts, attention->owners = owners, all->places = places;
}

static ort_status *step(layer *all, ort_context *context, const megrez_attention_inputs *of, int32_t *told) {
    const ort_api *api = all->self->api;
    const char *wrong = megrez_attention_lengths(of, &all->attention, told);
    if (wrong) return megrez_refuse(api, wrong);
    pack(all, told + 2 * all->attention.rows);
    void *output = NULL;
    ort_status *status = megrez_output(api, context, 0, &of->shapes[HIDDEN], &output);
    if (!status) status = megrez_attention_caches(api, context, of, &all->attention);
    if (status || !all->count) return status;
    all->hidden = of->data[HIDDEN], all->output = output;
    return run(all, context);
}

static ort_status *compute(void *opaque, ort_context *context) {
    static const size_t changing[] = {HIDDEN, PAST_KEY, PAST_VALUE, LENGTHS, LONGEST, KEY_SCALE, VALUE_SCALE, FRESH};
    const kernel *self = opaque;
    const ort_api *api = self->api;
    megrez_attention_inputs of = self->constants;
    for (size_t n = 0; n < sizeof changing / sizeof *changing; n++) {
        const size_t index = changing[n];
        ort_status *status = megrez_input(api, context, index, &of.shapes[index], &of.data[index]);
        if (status) return status;
    }
    const megrez_shape *hidden = &of.shapes[HIDDEN];
    if (hidden->rank != 3 || hidden->dimensions[2] != self->width)
        return megrez_refuse(api, "DecoderLayer: hidden is not [B, T, width of its norms]");
    layer all = {.self = self, .attention = {.rows = hidden->dimensions[0], .tokens = hidden->dimensions[1]}};
    const char *wrong = megrez_attention_understand(&self->settings, &of, &all.attention);
    if (!wrong) wrong = judge(self, &all.attention);
    if (wrong) return megrez_refuse(api, wrong);
    const size_t rows = (size_t)all.attention.rows, tokens = (size_t)all.attention.tokens;
    int32_t *told = malloc((3 + 2 * tokens) * rows * sizeof *told);
    if (!told) return ort_create_status(api)(ORT_FAIL, "DecoderLayer: no memory for its lengths");
    ort_status *status = step(&all, context, &of, told);
    free(told);
    return status;
}

static ort_status *read_products(const ort_api *api, const ort_kernel_info *info, kernel *found) {
    static const char *const prefixes[] = {"query_", "key_", "value_", "output_", "gate_up_", "down_"};
    for (size_t n = 0; n < PRODUCTS; n++) {
        const size_t first = ATTENTION_INPUTS + n * WEIGHT_INPUTS;
        const size_t inputs[] = {first, first + 1, first + 2, first + 3};
        bool given;
        ort_status *status = megrez_find_given(api, info, first, &given);
        if (!status && given) status = megrez_read_weights(api, info, prefixes[n], inputs, found->products + n);
        if (status) return status;
    }
    return NULL;
}

static ort_status *read(const ort_api *api, const ort_kernel_info *info, megrez_cache_format format, kernel *found) {
    static const size_t constants[] = {ATTENTION_NORM, MLP_NORM, COSINES, SINES};
    ort_status *status = megrez_attention_read(api, info, format, &found->settings);
    for (size_t n = 0; n < sizeof constants / sizeof *constants && !status; n++) {
        const size_t index = constants[n];
        status = megrez_constant(api, info, index, &found->constants.shapes[index], &found->constants.data[index]);
        if (!status && !found->constants.data[index])
            status = megrez_refuse(api, "DecoderLayer: norms and tables of positions are needed");
    }
    if (status) return status;
    found->width = megrez_elements(&found->constants.shapes[ATTENTION_NORM]);
    if (found->width != megrez_elements(&found->constants.shapes[MLP_NORM]))
        return megrez_refuse(api, "DecoderLayer: the norms differ in width");
    megrez_optional_float(api, info, "epsilon", &found->epsilon);
    return read_products(api, info, found);
}

static void release_products(kernel *self) {
    for (int n = 0; n < PRODUCTS; n++) megrez_release_weights(self->products + n);
}

static void destroy(void *made) {
    kernel *self = made;
    release_products(self);
    free(self);
}

static ort_status *create_for(
    megrez_cache_format format, const ort_api *api, const ort_kernel_info *info, void **made
) {
    kernel found = {.api = api};
    ort_status *status = read(api, info, format, &found);
    kernel *self = status ? NULL : malloc(sizeof *self);
    if (!self) {
        release_products(&found);
        return status ? status : ort_create_status(api)(ORT_FAIL, "DecoderLayer: no memory");
    }
    *self = found;
    *made = self;
    return NULL;
}

static size_t input_count(const ort_custom_op *op) { return (void)op, INPUTS; }

static ort_presence input_presence(const ort_custom_op *op, size_t index) {
    (void)op;
    return index <= SINES ? ORT_REQUIRED : ORT_OPTIONAL;
}

static ort_type input_type_of(megrez_cache_format format, size_t index) {
    if (index < ATTENTION_INPUTS) return megrez_attention_input_type(format, index);
    return (index - ATTENTION_INPUTS) % 2 ? ORT_FLOAT : ORT_UINT8; /* codes, scales, zero points, bias */
}

MEGREZ_OF_CACHE(MEGREZ_DECODER_LAYER, MEGREZ_FLOAT32, "DecoderLayer");
MEGREZ_OF_CACHE(MEGREZ_DECODER_LAYER_FLOAT16, MEGREZ_FLOAT16, "DecoderLayerFloat16");
MEGREZ_OF_CACHE(MEGREZ_DECODER_LAYER_INT8, MEGREZ_INT8, "DecoderLayerInt8");
