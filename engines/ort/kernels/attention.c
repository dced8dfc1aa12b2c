/* Attention with AVX2: its division into work items, and the passes before and after them. */
#include "attention.h"
#include "attention_tile.h"

#ifdef MEGREZ_HAS_AVX2

#include <string.h>

/* A query's keys are read in parts that are merged in order, whether in one work item or in several: its output does not
 * depend on which other queries and sequences are in the step.
 */
enum {
    ROWS = 32,  /* queries per work item, of all query heads that share a KV head */
    PART = 128, /* keys; a work item of its own if there are few queries */
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
    all->parts = all->blocks > 1 ? 1 : (longest + PART - 1) / PART;
    if (all->scale == 0) all->scale = 1 / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss((float)all->width)));
    const size_t heads = (size_t)(all->rows * all->tokens * all->heads), width = (size_t)all->width;
    return heads * (width + (size_t)all->parts * (width + 2));
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

/* A query's head among all heads of all tokens. */
static int64_t head_of(const megrez_attention *all, const place *at, int64_t query) {
    const int64_t group = all->heads / all->kv_heads, token = at->row * all->tokens + query / group;
    return token * all->heads + at->kv_head * group + query % group;
}

/* Where a part's output is stored, and behind it its softmax state. */
static float *partial_of(const megrez_attention *all, int64_t head, int64_t part) {
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
            of.outputs[n] = partial_of(all, head, at->part);
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

/* The keys from `start` to `end` with the first `valid` queries of a work item; the partial outputs of the others are 0. */
static void attend_part(const megrez_attention *all, const place *at, int64_t valid, int64_t start, int64_t end) {
    place seeing = *at;
    seeing.count = valid;
    progress so_far[ROWS];
    for (int64_t q = 0; q < at->count; q++) {
        so_far[q] = (progress){LEAST, 0};
        memset(partial_of(all, head_of(all, at, at->first + q), at->part), 0, (size_t)all->width * sizeof(float));
    }
    for (; start < end; start += KEYS) attend_block(all, &seeing, start, least(end, start + KEYS), so_far);
    for (int64_t q = 0; q < at->count; q++) {
        float *state = partial_of(all, head_of(all, at, at->first + q), at->part) + all->width;
        state[0] = so_far[q].largest, state[1] = so_far[q].sum;
    }
}

/* Add a part to a query's output, which is relative to the largest score so far. */
KERNEL void merge(const float *part, int64_t width, float *output, progress *so_far) {
    const float largest = part[width], sum = part[width + 1];
    if (sum == 0) return;
    const float highest = largest > so_far->largest ? largest : so_far->largest;
    const float kept = exponential_of_one(so_far->largest - highest), taken = exponential_of_one(largest - highest);
    for (int64_t n = 0; n < width; n += 8) {
        const __m256 more = _mm256_mul_ps(_mm256_loadu_ps(part + n), _mm256_set1_ps(taken));
        _mm256_storeu_ps(output + n, _mm256_fmadd_ps(_mm256_loadu_ps(output + n), _mm256_set1_ps(kept), more));
    }
    *so_far = (progress){highest, so_far->sum * kept + sum * taken};
}

KERNEL void normalise(int64_t width, float *output, const progress *so_far) {
    for (int64_t n = 0; n < width && so_far->sum > 0; n++) output[n] /= so_far->sum;
}

/* All parts of the keys that a work item's queries see, one after the other. */
AVX2 static void attend_whole(const megrez_attention *all, const place *at, int64_t valid, int64_t seen, int64_t last) {
    progress so_far[ROWS];
    for (int64_t q = 0; q < at->count; q++) {
        so_far[q] = (progress){LEAST, 0};
        memset(all->outputs + head_of(all, at, at->first + q) * all->width, 0, (size_t)all->width * sizeof(float));
    }
    for (int64_t part = seen / PART; part * PART < last; part++) {
        attend_part(all, at, valid, most(seen, part * PART), least(last, (part + 1) * PART));
        for (int64_t q = 0; q < at->count; q++) {
            const int64_t head = head_of(all, at, at->first + q);
            merge(partial_of(all, head, 0), all->width, all->outputs + head * all->width, so_far + q);
        }
    }
    for (int64_t q = 0; q < at->count; q++)
        normalise(all->width, all->outputs + head_of(all, at, at->first + q) * all->width, so_far + q);
}

void megrez_attend(const megrez_attention *all, int64_t piece) {
    const place at = place_of(all, piece);
    const int64_t group = all->heads / all->kv_heads, past = all->lengths[at.row] - all->fresh[at.row];
    const int64_t valid = most(0, least(at.count, all->fresh[at.row] * group - at.first)); /* the others are padding */
    const int64_t first = past + at.first / group, last = valid ? past + (at.first + valid - 1) / group + 1 : 0;
    /* Blocks of keys begin at multiples of KEYS, whichever queries see them. */
    const int64_t seen = all->window ? most(0, first + 1 - all->window) / KEYS * KEYS : 0;
    if (all->parts > 1)
        attend_part(all, &at, valid, most(seen, at.part * PART), least(last, (at.part + 1) * PART));
    else
        attend_whole(all, &at, valid, seen, last);
}

AVX2 void megrez_join(const megrez_attention *all, int64_t token) {
    for (int64_t head = token * all->heads; head < (token + 1) * all->heads; head++) {
        float *output = all->outputs + head * all->width;
        progress so_far = {LEAST, 0};
        memset(output, 0, (size_t)all->width * sizeof *output);
        for (int64_t p = 0; p < all->parts; p++) merge(partial_of(all, head, p), all->width, output, &so_far);
        normalise(all->width, output, &so_far);
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
