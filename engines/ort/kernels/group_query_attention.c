/* GroupQueryAttention: in place of ONNX Runtime's own for a float32 cache, and as operators of ours for others.
 *
 * Inputs as in the operator's specification, but that a float16 cache is read with float32 queries, and that k_scale and
 * v_scale of an int8 cache are caches themselves, [B, heads, capacity, 1]: they have two more outputs. key and value may
 * be absent, query then holds all three; without query_seqlens, the new tokens of a sequence are valid up to its length.
 * The present caches are as large as the past ones, and should be the same memory.
 */
#include "attention_inputs.h"

#include <stdlib.h>

typedef struct {
    const ort_api *api;
    megrez_attention_settings settings;
} kernel;

/* What a parallel loop gets. */
typedef struct {
    const megrez_attention_passes *passes;
    megrez_attention *all;
} work;

static void append(void *of, size_t token) { ((work *)of)->passes->append(((work *)of)->all, (int64_t)token); }
static void attend(void *of, size_t piece) { ((work *)of)->passes->attend(((work *)of)->all, (int64_t)piece); }
static void join(void *of, size_t token) { ((work *)of)->passes->join(((work *)of)->all, (int64_t)token); }

/* In parallel if there is more than one token: a single one costs less than starting the threads. */
static ort_status *over_tokens(
    const ort_api *api, const ort_context *context, work *of, void (*step)(void *, size_t)
) {
    const size_t count = (size_t)of->all->count;
    if (count > 1) return ort_parallel_for(api)(context, step, count, 0, of);
    step(of, 0);
    return NULL;
}

static ort_status *run(const kernel *self, const ort_context *context, megrez_attention *all) {
    const ort_api *api = self->api;
    const size_t floats = megrez_attention_plan(all);
    float *room = malloc(floats * sizeof *room);
    if (!room) return ort_create_status(api)(ORT_FAIL, "GroupQueryAttention: no memory for its queries");
    megrez_attention_use(all, room);
    work of = {self->settings.passes, all};
    ort_status *status = over_tokens(api, context, &of, append);
    if (!status)
        status = ort_parallel_for(api)(context, attend, (size_t)megrez_attention_pieces(all), 0, &of);
    if (!status && all->parts > 1) status = over_tokens(api, context, &of, join);
    free(room);
    return status;
}

/* Where the queries, new keys and values are; returns what is wrong with them, or NULL. */
static const char *understand_queries(const megrez_attention_inputs *of, megrez_attention *all) {
    const int64_t wide = all->heads * all->width, narrow = all->kv_heads * all->width;
    const int64_t found = of->shapes[QUERY].dimensions[2];
    const bool packed = !of->data[KEY];
    if (packed != !of->data[VALUE] || found != wide + (packed ? 2 * narrow : 0))
        return "query is not as wide as num_heads heads, with key and value or with all of kv_num_heads after them";
    for (int n = KEY; n <= VALUE && !packed; n++) {
        const int64_t *is = of->shapes[n].dimensions;
        if (of->shapes[n].rank != 3 || is[0] != all->rows || is[1] != all->tokens || is[2] != narrow)
            return "key and value are not [B, T, kv_num_heads * width]";
    }
    all->queries = of->data[QUERY];
    all->new_keys = packed ? all->queries + wide : of->data[KEY];
    all->new_values = packed ? all->new_keys + narrow : of->data[VALUE];
    all->query_stride = found;
    all->key_stride = all->value_stride = packed ? found : narrow;
    return NULL;
}

static ort_status *attend_to(
    const kernel *self, ort_context *context, const megrez_attention_inputs *of, megrez_attention *all, int32_t *told
) {
    const ort_api *api = self->api;
    const char *wrong = megrez_attention_lengths(of, all, told);
    if (wrong) return megrez_refuse(api, wrong);
    const megrez_shape shape = {{all->rows, all->tokens, all->heads * all->width}, 3};
    void *output = NULL;
    ort_status *status = megrez_output(api, context, 0, &shape, &output);
    all->outputs = output;
    if (!status) status = megrez_attention_caches(api, context, of, all);
    return status || !all->tokens ? status : run(self, context, all);
}

static ort_status *compute(void *opaque, ort_context *context) {
    const kernel *self = opaque;
    const ort_api *api = self->api;
    megrez_attention_inputs of = {0};
    for (size_t n = 0; n < ATTENTION_INPUTS; n++) {
        ort_status *status = megrez_input(api, context, n, &of.shapes[n], &of.data[n]);
        if (status) return status;
    }
    if (of.shapes[QUERY].rank != 3) return megrez_refuse(api, "query is not [B, T, width]");
    megrez_attention all = {.rows = of.shapes[QUERY].dimensions[0], .tokens = of.shapes[QUERY].dimensions[1]};
    all.count = all.rows * all.tokens;
    const char *wrong = megrez_attention_understand(&self->settings, &of, &all);
    if (!wrong) wrong = understand_queries(&of, &all);
    if (wrong) return megrez_refuse(api, wrong);
    int32_t *told = malloc(2 * (size_t)all.rows * sizeof *told);
    if (!told) return ort_create_status(api)(ORT_FAIL, "GroupQueryAttention: no memory for its lengths");
    ort_status *status = attend_to(self, context, &of, &all, told);
    free(told);
    return status;
}

static ort_status *create_for(
    megrez_cache_format format, const ort_api *api, const ort_kernel_info *info, void **made
) {
    kernel found = {.api = api};
    ort_status *status = megrez_attention_read(api, info, format, &found.settings);
    if (status) return status;
    kernel *self = malloc(sizeof *self);
    if (!self) return ort_create_status(api)(ORT_FAIL, "GroupQueryAttention: no memory");
    *self = found;
    *made = self;
    return NULL;
}

static void destroy(void *made) { free(made); }

static size_t input_count(const ort_custom_op *op) { return (void)op, ATTENTION_INPUTS; }

static ort_presence input_presence(const ort_custom_op *op, size_t index) {
    (void)op;
    return index == KEY || index == VALUE || index > SINES ? ORT_OPTIONAL : ORT_REQUIRED;
}

static ort_type input_type_of(megrez_cache_format format, size_t index) {
    return megrez_attention_input_type(format, index);
}

MEGREZ_OF_CACHE(MEGREZ_GROUP_QUERY_ATTENTION, MEGREZ_FLOAT32, "GroupQueryAttention");
MEGREZ_OF_CACHE(MEGREZ_ATTENTION_FLOAT16, MEGREZ_FLOAT16, "GroupQueryAttentionFloat16");
MEGREZ_OF_CACHE(MEGREZ_ATTENTION_INT8, MEGREZ_INT8, "GroupQueryAttentionInt8");
