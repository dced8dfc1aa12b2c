/* Reads GroupQueryAttention's inputs and attributes. */
#include "attention_inputs.h"

#include <stdio.h>
#include <string.h>

enum { PRESENT = 1 }; /* the first output that is a cache */

const char *megrez_attention_understand(
    const megrez_attention_settings *settings, const megrez_attention_inputs *of, megrez_attention *all
) {
    const megrez_shape *past = &of->shapes[PAST_KEY], *table = &of->shapes[COSINES];
    all->heads = settings->heads, all->kv_heads = settings->kv_heads, all->window = settings->window;
    all->scale = settings->scale, all->format = settings->format;
    if (past->rank != 4 || of->shapes[PAST_VALUE].rank != 4 || table->rank != 2)
        return "past_key and past_value [B, heads, capacity, width], cos_cache [positions, rotated / 2] are needed";
    if (!of->data[LENGTHS] || !of->data[LONGEST]) return "seqlens_k and total_sequence_length are needed";
    if (memcmp(table, &of->shapes[SINES], sizeof *table)) return "cos_cache and sin_cache differ in shape";
    all->capacity = past->dimensions[2], all->width = past->dimensions[3], all->rotated = 2 * table->dimensions[1];
    if (!megrez_attends(all->width, all->format) || all->rotated > all->width)
        return "heads whose width is a multiple of 8 (up to 512 unless the cache is float32), and no more of them is rotated";
    if (memcmp(past, &of->shapes[PAST_VALUE], sizeof *past) || past->dimensions[0] != all->rows ||
        past->dimensions[1] != all->kv_heads)
        return "past_key and past_value differ in shape, or are not of query's batch and kv_num_heads";
    for (int n = KEY_SCALE; n <= VALUE_SCALE && all->format == MEGREZ_INT8; n++)
        if (of->shapes[n].rank != 4 || memcmp(past->dimensions, of->shapes[n].dimensions, 3 * sizeof(int64_t)) ||
            of->shapes[n].dimensions[3] != 1)
            return "k_scale and v_scale are not [B, heads, capacity, 1]";
    if (!all->rows) return "no rows were given";
    all->cosines = of->data[COSINES], all->sines = of->data[SINES];
    return NULL;
}

const char *megrez_attention_lengths(const megrez_attention_inputs *of, megrez_attention *all, int32_t *told) {
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

ort_status *megrez_attention_caches(
    const ort_api *api, ort_context *context, const megrez_attention_inputs *of, megrez_attention *all
) {
    static const size_t bytes[] = {[MEGREZ_FLOAT32] = 4, [MEGREZ_FLOAT16] = 2, [MEGREZ_INT8] = 1};
    static const size_t past[] = {PAST_KEY, PAST_VALUE, KEY_SCALE, VALUE_SCALE};
    void *present[] = {NULL, NULL, NULL, NULL};
    for (size_t n = 0; n < (all->format == MEGREZ_INT8 ? 4 : 2); n++) {
        const megrez_shape *shape = &of->shapes[past[n]];
        const size_t size = (size_t)megrez_elements(shape) * (n < 2 ? bytes[all->format] : sizeof(float));
        ort_status *status = megrez_output(api, context, PRESENT + n, shape, &present[n]);
        if (status) return status;
        if (present[n] != of->data[past[n]]) memcpy(present[n], of->data[past[n]], size);
    }
    all->keys = present[0], all->values = present[1], all->key_scales = present[2], all->value_scales = present[3];
    return NULL;
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

ort_status *megrez_attention_read(
    const ort_api *api, const ort_kernel_info *info, megrez_cache_format format, megrez_attention_settings *found
) {
    *found = (megrez_attention_settings){.passes = megrez_attention_here(), .format = format, .window = -1};
    ort_status *status = judge(api, info, format);
    if (!status) status = ort_attribute(api)(info, "num_heads", &found->heads);
    if (!status) status = ort_attribute(api)(info, "kv_num_heads", &found->kv_heads);
    if (status) return status;
    megrez_optional(api, info, "local_window_size", &found->window);
    megrez_optional_float(api, info, "scale", &found->scale);
    if (!found->window) return megrez_decline(api, "GroupQueryAttention: local_window_size is 0, in which nothing is seen");
    if (found->kv_heads < 1 || found->heads < 1 || found->heads % found->kv_heads)
        return megrez_refuse(api, "GroupQueryAttention: num_heads is not a multiple of kv_num_heads");
    if (found->window < 0) found->window = 0; /* no sliding window */
    return NULL;
}

static ort_type cache_type(megrez_cache_format format) {
    return format == MEGREZ_INT8 ? ORT_INT8 : format == MEGREZ_FLOAT16 ? ORT_FLOAT16 : ORT_FLOAT;
}

ort_type megrez_attention_input_type(megrez_cache_format format, size_t index) {
    return index == LENGTHS || index == LONGEST || index == FRESH ? ORT_INT32
           : index == POSITIONS                                   ? ORT_INT64
           : index == PAST_KEY || index == PAST_VALUE             ? cache_type(format)
                                                                  : ORT_FLOAT;
}

ort_type megrez_attention_output_type(megrez_cache_format format, size_t index) {
    return index == PRESENT || index == PRESENT + 1 ? cache_type(format) : ORT_FLOAT;
}

size_t megrez_attention_outputs(megrez_cache_format format) { return format == MEGREZ_INT8 ? 5 : 3; }
