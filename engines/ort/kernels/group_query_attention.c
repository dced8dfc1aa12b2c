/* GroupQueryAttention: in place of ONNX Runtime's own for a float32 cache, and as operators of ours for others.
 *
 * Inputs as in the operator's specification, but that a float16 cache is read with float32 queries, and that k_scale and
 * v_scale of an int8 cache are caches themselves, [B, heads, capacity, 1]: they have two more outputs. key and value may be absent, query then holds all three; without
 * query_seqlens, the new tokens of a sequence are valid up to its length. The present caches are as large as the past
 * ones, and should be the same memory.
 */
#include "attention.h"
#include "operator.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    QUERY, KEY, VALUE, PAST_KEY, PAST_VALUE, LENGTHS, LONGEST, COSINES, SINES,
    POSITIONS, BIAS, SINK, KEY_SCALE, VALUE_SCALE, QUERY_NORM, KEY_NORM, /* only the scales are supported */
    FRESH, INPUTS
};
enum { OUTPUT, PRESENT_KEY, PRESENT_VALUE, PRESENT_KEY_SCALE, PRESENT_VALUE_SCALE };

typedef struct {
    const ort_api *api;
    const megrez_attention_passes *passes;
    megrez_cache_format format;
    int64_t heads, kv_heads, window;
    float scale;
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
    const size_t count = (size_t)(of->all->rows * of->all->tokens);
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
    work of = {self->passes, all};
    ort_status *status = over_tokens(api, context, &of, append);
    if (!status)
        status = ort_parallel_for(api)(context, attend, (size_t)megrez_attention_pieces(all), 0, &of);
    if (!status && all->parts > 1) status = over_tokens(api, context, &of, join);
    free(room);
    return status;
}

typedef struct {
    const void *data[INPUTS];
    megrez_shape shapes[INPUTS];
} inputs;

/* Read the inputs' shapes; returns what is wrong with them, or NULL. */
static const char *understand(const inputs *of, megrez_attention *all) {
    const megrez_shape *query = &of->shapes[QUERY], *past = &of->shapes[PAST_KEY], *table = &of->shapes[COSINES];
    if (query->rank != 3 || past->rank != 4 || of->shapes[PAST_VALUE].rank != 4 || table->rank != 2)
        return "query [B, T, width], past_key and past_value [B, heads, capacity, width], cos_cache are needed";
    if (!of->data[LENGTHS] || !of->data[LONGEST]) return "seqlens_k and total_sequence_length are needed";
    if (memcmp(table, &of->shapes[SINES], sizeof *table)) return "cos_cache and sin_cache differ in shape";
    all->rows = query->dimensions[0], all->tokens = query->dimensions[1];
    all->capacity = past->dimensions[2], all->width = past->dimensions[3], all->rotated = 2 * table->dimensions[1];
    const int64_t wide = all->heads * all->width, narrow = all->kv_heads * all->width;
    const bool packed = !of->data[KEY];
    if (!megrez_attends(all->width, all->format) || all->rotated > all->width)
        return "heads whose width is a multiple of 8 (up to 512 unless the cache is float32), and no more of them is rotated";
    if (memcmp(past, &of->shapes[PAST_VALUE], sizeof *past) || past->dimensions[0] != all->rows ||
        past->dimensions[1] != all->kv_heads)
        return "past_key and past_value differ in shape, or are not of query's batch and kv_num_heads";
    for (int n = KEY_SCALE; n <= VALUE_SCALE && all->format == MEGREZ_INT8; n++)
        if (of->shapes[n].rank != 4 || memcmp(past->dimensions, of->shapes[n].dimensions, 3 * sizeof(int64_t)) ||
            of->shapes[n].dimensions[3] != 1)
            return "k_scale and v_scale are not [B, heads, capacity, 1]";
    if (packed != !of->data[VALUE] || query->dimensions[2] != wide + (packed ? 2 * narrow : 0))
        return "query is not as wide as num_heads heads, with key and value or with all of kv_num_heads after them";
    for (int n = KEY; n <= VALUE && !packed; n++) {
        const int64_t *is = of->shapes[n].dimensions;
        if (of->shapes[n].rank != 3 || is[0] != all->rows || is[1] != all->tokens || is[2] != narrow)
            return "key and value are not [B, T, kv_num_heads * width]";
    }
    all->cosines = of->data[COSINES], all->sines = of->data[SINES], all->queries = of->data[QUERY];
    all->new_keys = packed ? all->queries + wide : of->data[KEY];
    all->new_values = packed ? all->new_keys + narrow : of->data[VALUE];
    all->query_stride = query->dimensions[2];
    all->key_stride = all->value_stride = packed ? all->query_stride : narrow;
    return NULL;
}

/* Store the sequences' lengths after this step and their new tokens in `told` [2, B]; returns an error or NULL. */
static const char *understand_lengths(const inputs *of, megrez_attention *all, int32_t *told) {
    const int32_t *last = of->data[LENGTHS], *valid = of->data[FRESH], *longest = of->data[LONGEST];
    const megrez_shape *lengths = &of->shapes[LENGTHS], *counts = &of->shapes[FRESH];
    const int64_t positions = of->shapes[COSINES].dimensions[0];
    if (megrez_elements(lengths) != all->rows) return "seqlens_k is not [B]";
    if (valid && megrez_elements(counts) != all->rows) return "query_seqlens is not [B]";
    if (megrez_elements(&of->shapes[LONGEST]) != 1) return "total_sequence_length is not one number";
    for (int64_t row = 0; row < all->rows; row++) {
        const int64_t length = (int64_t)last[row] + 1;
        const int64_t fresh = valid ? valid[row] : length < all->tokens ? length : all->tokens;
        if (fresh < 0 || fresh > all->tokens || fresh > length)
            return "a row has more valid new tokens than new ones, or than seqlens_k says it has in all";
        if (length > all->capacity || length > positions)
            return "a row is longer than its cache or the tables of its positions";
        if (length > *longest) return "a row is longer than total_sequence_length";
        told[row] = (int32_t)length, told[all->rows + row] = (int32_t)fresh;
    }
    all->lengths = told, all->fresh = told + all->rows;
    return NULL;
}

/* The present caches: the past ones if both are bound to the same memory, otherwise a copy of them. */
static ort_status *caches(const ort_api *api, ort_context *context, const inputs *of, megrez_attention *all) {
    static const size_t bytes[] = {[MEGREZ_FLOAT32] = 4, [MEGREZ_FLOAT16] = 2, [MEGREZ_INT8] = 1};
    static const size_t past[] = {PAST_KEY, PAST_VALUE, KEY_SCALE, VALUE_SCALE};
    void *present[] = {NULL, NULL, NULL, NULL};
    for (size_t n = 0; n < (all->format == MEGREZ_INT8 ? 4 : 2); n++) {
        const megrez_shape *shape = &of->shapes[past[n]];
        const size_t size = (size_t)megrez_elements(shape) * (n < 2 ? bytes[all->format] : sizeof(float));
        ort_status *status = megrez_output(api, context, PRESENT_KEY + n, shape, &present[n]);
        if (status) return status;
        if (present[n] != of->data[past[n]]) memcpy(present[n], of->data[past[n]], size);
    }
    all->keys = present[0], all->values = present[1], all->key_scales = present[2], all->value_scales = present[3];
    return NULL;
}

static ort_status *attend_to(
    const kernel *self, ort_context *context, const inputs *of, megrez_attention *all, int32_t *told
) {
    const ort_api *api = self->api;
    const char *wrong = understand_lengths(of, all, told);
    if (wrong) return megrez_refuse(api, wrong);
    const megrez_shape shape = {{all->rows, all->tokens, all->heads * all->width}, 3};
    void *output = NULL;
    ort_status *status = megrez_output(api, context, OUTPUT, &shape, &output);
    all->outputs = output;
    if (!status) status = caches(api, context, of, all);
    return status || !all->tokens ? status : run(self, context, all);
}

static ort_status *compute(void *opaque, ort_context *context) {
    const kernel *self = opaque;
    const ort_api *api = self->api;
    inputs of = {0};
    for (size_t n = 0; n < INPUTS; n++) {
        ort_status *status = megrez_input(api, context, n, &of.shapes[n], &of.data[n]);
        if (status) return status;
    }
    megrez_attention all = {
        .heads = self->heads, .kv_heads = self->kv_heads, .window = self->window, .scale = self->scale,
        .format = self->format
    };
    const char *wrong = understand(&of, &all);
    if (wrong) return megrez_refuse(api, wrong);
    if (!all.rows) return megrez_refuse(api, "no rows were given");
    int32_t *told = malloc(2 * (size_t)all.rows * sizeof *told);
    if (!told) return ort_create_status(api)(ORT_FAIL, "GroupQueryAttention: no memory for its lengths");
    ort_status *status = attend_to(self, context, &of, &all, told);
    free(told);
    return status;
}

/* Attributes of which one value is supported; if absent or negative, they have the default. */
static const struct {
    const char *name;
    int64_t absent, taken;
} FIXED[] = {
    {"do_rotary", 0, 1}, {"causal", 1, 1}, {"rotary_interleaved", 0, 0}, {"smooth_softmax", 0, 0}, {"qk_output", 0, 0},
    {"sliding_window_cache", 0, 0}
};

/* Rejects what this kernel would compute differently from ONNX Runtime's. */
static ort_status *judge(const ort_api *api, const ort_kernel_info *info, megrez_cache_format format) {
    char text[96];
    float softcap = 0;
    for (size_t n = 0; n < sizeof FIXED / sizeof *FIXED; n++) {
        int64_t value = -1;
        megrez_optional(api, info, FIXED[n].name, &value);
        if (value < 0) value = FIXED[n].absent;
        if (value == FIXED[n].taken) continue;
        snprintf(text, sizeof text, "GroupQueryAttention: %s is %lld, %lld is taken", FIXED[n].name, (long long)value,
                 (long long)FIXED[n].taken);
        return megrez_decline(api, text);
    }
    megrez_optional_float(api, info, "softcap", &softcap);
    if (softcap != 0) return megrez_decline(api, "GroupQueryAttention: softcap is not taken");
    for (size_t n = POSITIONS; n < FRESH; n++) {
        bool given;
        ort_status *status = megrez_find_given(api, info, n, &given);
        if (status) return status;
        const bool wanted = format == MEGREZ_INT8 && (n == KEY_SCALE || n == VALUE_SCALE);
        if (given == wanted) continue;
        snprintf(text, sizeof text, "GroupQueryAttention: input %zu is %s", n, wanted ? "missing" : "not taken");
        return megrez_decline(api, text);
    }
    return NULL;
}

static ort_status *create_for(
    megrez_cache_format format, const ort_api *api, const ort_kernel_info *info, void **made
) {
    kernel found = {.api = api, .passes = megrez_attention_here(), .format = format, .window = -1};
    ort_status *status = judge(api, info, format);
    if (!status) status = ort_attribute(api)(info, "num_heads", &found.heads);
    if (!status) status = ort_attribute(api)(info, "kv_num_heads", &found.kv_heads);
    if (status) return status;
    megrez_optional(api, info, "local_window_size", &found.window);
    megrez_optional_float(api, info, "scale", &found.scale);
    if (!found.window) return megrez_decline(api, "GroupQueryAttention: local_window_size is 0, in which nothing is seen");
    if (found.kv_heads < 1 || found.heads < 1 || found.heads % found.kv_heads)
        return megrez_refuse(api, "GroupQueryAttention: num_heads is not a multiple of kv_num_heads");
    if (found.window < 0) found.window = 0; /* no sliding window */
    kernel *self = malloc(sizeof *self);
    if (!self) return ort_create_status(api)(ORT_FAIL, "GroupQueryAttention: no memory");
    *self = found;
    *made = self;
    return NULL;
}

static size_t input_count(const ort_custom_op *op) { return (void)op, INPUTS; }
static size_t output_count(const ort_custom_op *op) { return op == &MEGREZ_ATTENTION_INT8 ? 5 : 3; }

static ort_presence input_presence(const ort_custom_op *op, size_t index) {
    (void)op;
    return index == KEY || index == VALUE || index > SINES ? ORT_OPTIONAL : ORT_REQUIRED;
}

/* The elements of the caches. */
static ort_type cache_type(const ort_custom_op *op) {
    return op == &MEGREZ_ATTENTION_INT8 ? ORT_INT8 : op == &MEGREZ_ATTENTION_FLOAT16 ? ORT_FLOAT16 : ORT_FLOAT;
}

static ort_type input_type(const ort_custom_op *op, size_t index) {
    return index == LENGTHS || index == LONGEST || index == FRESH ? ORT_INT32
           : index == POSITIONS                                   ? ORT_INT64
           : index == PAST_KEY || index == PAST_VALUE             ? cache_type(op)
                                                                  : ORT_FLOAT;
}

static ort_type output_type(const ort_custom_op *op, size_t index) {
    return index == PRESENT_KEY || index == PRESENT_VALUE ? cache_type(op) : ORT_FLOAT;
}

#define ATTENTION(symbol, cache, called)                                                                  \
    static const char *name_##cache(const ort_custom_op *op) { return (void)op, called; }                 \
    static ort_status *create_##cache(const ort_custom_op *op, const ort_api *api, const ort_kernel_info *info, \
                                      void **made) {                                                      \
        return (void)op, create_for(cache, api, info, made);                                              \
    }                                                                                                     \
    const ort_custom_op symbol = {                                                                        \
        MEGREZ_SHARED,                                                                                    \
        .name = name_##cache,                                                                             \
        .create_or_fail = create_##cache,                                                                 \
        .output_type = output_type,                                                                       \
        .input_type = input_type,                                                                         \
        .input_count = input_count,                                                                       \
        .output_count = output_count,                                                                     \
        .destroy = free,                                                                                  \
        .input_presence = input_presence,                                                                 \
    }
ATTENTION(MEGREZ_GROUP_QUERY_ATTENTION, MEGREZ_FLOAT32, "GroupQueryAttention");
ATTENTION(MEGREZ_ATTENTION_FLOAT16, MEGREZ_FLOAT16, "GroupQueryAttentionFloat16");
ATTENTION(MEGREZ_ATTENTION_INT8, MEGREZ_INT8, "GroupQueryAttentionInt8");
