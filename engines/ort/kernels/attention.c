/* Attention with AVX2: its division into work items, and the passes before and after them. */
#include "attention.h"
#include "attention_tile.h"

#ifdef MEGREZ_HAS_AVX2

#include <string.h>

enum {
    ROWS = 32,       /* queries per work item, of all query heads that share a KV head */
    PART = 128,      /* keys per work item, if there are few queries */
    MOST_PARTS = 16, /* of one query's keys, since merging them is not parallel */
};

bool megrez_attends(int64_t width) {
    return width > 0 && width % 8 == 0;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

size_t megrez_attention_plan(megrez_attention *all) {
    const int64_t queries = all->tokens * (all->heads / all->kv_heads);
    int64_t longest = 1;
    for (int64_t row = 0; row < all->rows; row++) longest = most(longest, all->lengths[row]);
    all->blocks = (queries + ROWS - 1) / ROWS;
    all->parts = all->blocks > 1 ? 1 : least(MOST_PARTS, (longest + PART - 1) / PART);
    all->part = (longest + all->parts - 1) / all->parts;
    if (all->scale == 0) all->scale = 1 / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss((float)all->width)));
    const size_t heads = (size_t)(all->rows * all->tokens * all->heads), width = (size_t)all->width;
    return heads * width + (all->parts > 1 ? heads * (size_t)all->parts * (width + 2) : 0);
}

void megrez_attention_use(megrez_attention *all, float *room) {
    all->rotated_queries = room;
    all->partial = room + all->rows * all->tokens * all->heads * all->width;
}

/* Rotary embedding of one head: pairs of the first and second half of the rotated channels. */
KERNEL void rotate(const megrez_attention *all, const float *from, const float *cosines, const float *sines,
                   float *to) {
    const int64_t half = all->rotated / 2;
    int64_t n = 0;
    for (; n + 8 <= half; n += 8) {
        const __m256 cosine = _mm256_loadu_ps(cosines + n), sine = _mm256_loadu_ps(sines + n);
        const __m256 first = _mm256_loadu_ps(from + n), second = _mm256_loadu_ps(from + half + n);
        _mm256_storeu_ps(to + n, _mm256_fmsub_ps(first, cosine, _mm256_mul_ps(second, sine)));
        _mm256_storeu_ps(to + half + n, _mm256_fmadd_ps(second, cosine, _mm256_mul_ps(first, sine)));
    }
    for (; n < half; n++) {
        const float first = from[n], second = from[half + n];
        to[n] = first * cosines[n] - second * sines[n];
        to[half + n] = second * cosines[n] + first * sines[n];
    }
    memcpy(to + all->rotated, from + all->rotated, (size_t)(all->width - all->rotated) * sizeof *to);
}

AVX2 void megrez_append(const megrez_attention *all, int64_t token) {
    const int64_t row = token / all->tokens, width = all->width;
    const int64_t position = all->lengths[row] - all->fresh[row] + token % all->tokens;
    if (token % all->tokens >= all->fresh[row]) return;
    const float *cosines = all->cosines + position * (all->rotated / 2);
    const float *sines = all->sines + position * (all->rotated / 2);
    const float *query = all->queries + token * all->query_stride;
    for (int64_t head = 0; head < all->heads; head++)
        rotate(all, query + head * width, cosines, sines, all->rotated_queries + (token * all->heads + head) * width);
    const float *key = all->new_keys + token * all->key_stride, *value = all->new_values + token * all->value_stride;
    for (int64_t head = 0; head < all->kv_heads; head++) {
        const int64_t place = ((row * all->kv_heads + head) * all->capacity + position) * width;
        rotate(all, key + head * width, cosines, sines, all->keys + place);
        memcpy(all->values + place, value + head * width, (size_t)width * sizeof *value);
    }
}

/* A work item: up to ROWS queries of one KV head, and the part of the cache that they read. */
typedef struct {
    int64_t row, kv_head, first, count, part;
} place;

static place place_of(const megrez_attention *all, int64_t piece) {
    const int64_t part = piece % all->parts, block = piece / all->parts % all->blocks;
    const int64_t head = piece / all->parts / all->blocks, first = block * ROWS;
    const int64_t queries = all->tokens * (all->heads / all->kv_heads);
    return (place){head / all->kv_heads, head % all->kv_heads, first, least(ROWS, queries - first), part};
}

/* Where a query's output and softmax state are stored: per part, if there are several. */
static int64_t head_of(const megrez_attention *all, const place *at, int64_t query) {
    const int64_t group = all->heads / all->kv_heads, token = at->row * all->tokens + query / group;
    return token * all->heads + at->kv_head * group + query % group;
}

static float *output_of(const megrez_attention *all, int64_t head, int64_t part) {
    if (all->parts == 1) return all->outputs + head * all->width;
    return all->partial + (head * all->parts + part) * (all->width + 2);
}

AVX2 static void attend_block(const megrez_attention *all, const place *at, int64_t start, int64_t end,
                              progress *so_far) {
    const int64_t group = all->heads / all->kv_heads, past = all->lengths[at->row] - all->fresh[at->row];
    const int64_t cache = ((at->row * all->kv_heads + at->kv_head) * all->capacity + start) * all->width;
    for (int64_t q = 0; q < at->count; q += TILE) {
        const int count = (int)least(TILE, at->count - q);
        tile of = {.first = KEYS};
        for (int n = 0; n < count; n++) {
            const int64_t query = at->first + q + n, head = head_of(all, at, query);
            const int64_t position = past + query / group;
            of.queries[n] = all->rotated_queries + head * all->width;
            of.outputs[n] = output_of(all, head, at->part);
            of.so_far[n] = so_far + q + n;
            of.to[n] = most(0, least(end, position + 1) - start);
            of.from[n] = all->window ? least(of.to[n], most(0, position + 1 - all->window - start)) : 0;
            of.first = least(of.first, of.from[n]), of.last = most(of.last, of.to[n]);
        }
        const float *key = all->keys + cache, *value = all->values + cache;
        if (of.first >= of.last) continue;
        if (count == 4) attend_tile(all, &of, 4, key, value);
        else if (count == 3) attend_tile(all, &of, 3, key, value);
        else if (count == 2) attend_tile(all, &of, 2, key, value);
        else attend_tile(all, &of, 1, key, value);
    }
}

int64_t megrez_attention_pieces(const megrez_attention *all) {
    return all->rows * all->kv_heads * all->blocks * all->parts;
}

void megrez_attend(const megrez_attention *all, int64_t piece) {
    const place whole = place_of(all, piece);
    place at = whole;
    const int64_t group = all->heads / all->kv_heads, past = all->lengths[at.row] - all->fresh[at.row];
    progress so_far[ROWS];
    for (int64_t q = 0; q < at.count; q++) {
        so_far[q] = (progress){LEAST, 0};
        memset(output_of(all, head_of(all, &at, at.first + q), at.part), 0, (size_t)all->width * sizeof(float));
    }
    at.count = most(0, least(at.count, all->fresh[at.row] * group - at.first)); /* the others are padding */
    const int64_t first = past + at.first / group, last = past + (at.first + at.count - 1) / group;
    const int64_t seen = all->window ? most(0, first + 1 - all->window) : 0;
    const int64_t end = least(last + 1, (at.part + 1) * all->part);
    for (int64_t start = most(seen, at.part * all->part); at.count && start < end; start += KEYS)
        attend_block(all, &at, start, least(end, start + KEYS), so_far);
    for (int64_t q = 0; q < whole.count; q++) {
        float *output = output_of(all, head_of(all, &whole, whole.first + q), whole.part);
        if (all->parts > 1)
            output[all->width] = so_far[q].largest, output[all->width + 1] = so_far[q].sum;
        else if (so_far[q].sum > 0)
            for (int64_t n = 0; n < all->width; n++) output[n] /= so_far[q].sum;
    }
}

AVX2 void megrez_join(const megrez_attention *all, int64_t token) {
    const int64_t width = all->width, stride = width + 2;
    for (int64_t head = token * all->heads; head < (token + 1) * all->heads; head++) {
        const float *parts = output_of(all, head, 0);
        float *output = all->outputs + head * width, largest = LEAST, sum = 0;
        for (int64_t p = 0; p < all->parts; p++) {
            const float one = parts[p * stride + width];
            largest = one > largest ? one : largest;
        }
        memset(output, 0, (size_t)width * sizeof *output);
        for (int64_t p = 0; p < all->parts; p++) {
            const float *part = parts + p * stride;
            if (part[width + 1] == 0) continue;
            const float kept = exponential_of_one(part[width] - largest);
            sum += kept * part[width + 1];
            for (int64_t n = 0; n < width; n++) output[n] += kept * part[n];
        }
        for (int64_t n = 0; n < width && sum > 0; n++) output[n] /= sum;
    }
}

#else /* another processor or compiler: ONNX Runtime's own kernels run */

bool megrez_attends(int64_t width) { return (void)width, false; }
size_t megrez_attention_plan(megrez_attention *all) { return (void)all, 0; }
void megrez_attention_use(megrez_attention *all, float *room) { (void)all, (void)room; }
void megrez_append(const megrez_attention *all, int64_t token) { (void)all, (void)token; }
int64_t megrez_attention_pieces(const megrez_attention *all) { return (void)all, 0; }
void megrez_attend(const megrez_attention *all, int64_t piece) { (void)all, (void)piece; }
void megrez_join(const megrez_attention *all, int64_t token) { (void)all, (void)token; }

#endif
