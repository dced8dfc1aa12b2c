/* The passes of attention, once for each instruction set: included by attention_avx2.c and attention_portable.c.
 *
 * Both define PASS, an attribute of functions, and include the functions on vectors: rotate, spread, prepare_query,
 * store_token, read_block, attend_tile_of, merge and normalise.
 */
#include "attention.h"

#include <string.h>

/* A row's first new token. */
static int64_t first_of(const megrez_attention *all, int64_t row) {
    return all->firsts ? all->firsts[row] : row * all->tokens;
}

PASS static void append(const megrez_attention *all, int64_t token) {
    const int64_t row = all->owners ? all->owners[token] : token / all->tokens, width = all->width;
    const int64_t place_in_row = token - first_of(all, row);
    const int64_t position = all->lengths[row] - all->fresh[row] + place_in_row;
    if (place_in_row >= all->fresh[row]) return;
    const float *cosines = all->cosines + position * (all->rotated / 2);
    const float *sines = all->sines + position * (all->rotated / 2);
    const float *query = all->queries + token * all->query_stride;
    for (int64_t head = 0; head < all->heads; head++) {
        float *to = all->rotated_queries + (token * all->heads + head) * width;
        rotate(all, query + head * width, cosines, sines, to);
        if (all->format == MEGREZ_INT8) prepare_query(to, width);
    }
    const float *key = all->new_keys + token * all->key_stride, *value = all->new_values + token * all->value_stride;
    float rotated[width];
    for (int64_t head = 0; head < all->kv_heads; head++) {
        const int64_t place = (row * all->kv_heads + head) * all->capacity + position;
        rotate(all, key + head * width, cosines, sines, rotated);
        if (all->format == MEGREZ_INT8) spread(rotated, width);
        store_token(all->format, rotated, width, place, all->keys, all->key_scales);
        store_token(all->format, value + head * width, width, place, all->values, all->value_scales);
    }
}

/* A work item: up to MEGREZ_ROWS queries of one KV head, and the part of the cache that they read. */
typedef struct {
    int64_t row, kv_head, first, count, part;
} place;

static place place_of(const megrez_attention *all, int64_t piece) {
    const int64_t part = piece % all->parts, block = piece / all->parts % all->blocks;
    const int64_t head = piece / all->parts / all->blocks, row = head / all->kv_heads, first = block * MEGREZ_ROWS;
    const int64_t queries = (all->firsts ? all->fresh[row] : all->tokens) * (all->heads / all->kv_heads);
    const int64_t count = megrez_most(0, megrez_least(MEGREZ_ROWS, queries - first));
    return (place){row, head % all->kv_heads, first, count, part};
}

/* A query's head among all heads of all tokens. */
static int64_t head_of(const megrez_attention *all, const place *at, int64_t query) {
    const int64_t group = all->heads / all->kv_heads, token = first_of(all, at->row) + query / group;
    return token * all->heads + at->kv_head * group + query % group;
}

/* Where a part's output is stored, and behind it its softmax state. */
static float *partial_of(const megrez_attention *all, int64_t head, int64_t part) {
    return all->partial + (head * all->parts + part) * (all->width + 2);
}

/* Tiles of the work item's queries with the keys from `start` to `end`. */
PASS static void attend_block(const megrez_attention *all, const place *at, int64_t start, int64_t end,
                              progress *so_far) {
    const int64_t group = all->heads / all->kv_heads, past = all->lengths[at->row] - all->fresh[at->row];
    const int64_t cached = (at->row * all->kv_heads + at->kv_head) * all->capacity + start;
    const size_t converted = all->format == MEGREZ_FLOAT32 ? 0 : (size_t)(2 * KEYS * all->width);
    float room[converted ? converted : 1];
    block keys;
    read_block(all, cached, end - start, room, &keys);
    for (int64_t q = 0; q < at->count; q += TILE) {
        const int count = (int)megrez_least(TILE, at->count - q);
        tile of = {.first = KEYS};
        for (int n = 0; n < count; n++) {
            const int64_t query = at->first + q + n, head = head_of(all, at, query);
            const int64_t position = past + query / group;
            of.queries[n] = all->rotated_queries + head * all->width;
            of.outputs[n] = partial_of(all, head, at->part);
            of.so_far[n] = so_far + q + n;
            of.to[n] = megrez_most(0, megrez_least(end, position + 1) - start);
            of.from[n] = all->window ? megrez_least(of.to[n], megrez_most(0, position + 1 - all->window - start)) : 0;
            of.first = megrez_least(of.first, of.from[n]), of.last = megrez_most(of.last, of.to[n]);
        }
        if (of.first >= of.last) continue;
        if (count == 4) attend_tile_of(all, &of, 4, &keys);
        else if (count == 3) attend_tile_of(all, &of, 3, &keys);
        else if (count == 2) attend_tile_of(all, &of, 2, &keys);
        else attend_tile_of(all, &of, 1, &keys);
    }
}

/* The keys from `start` to `end` with the first `valid` queries of a work item; the partial outputs of the others are 0. */
static void attend_part(const megrez_attention *all, const place *at, int64_t valid, int64_t start, int64_t end) {
    place seeing = *at;
    seeing.count = valid;
    progress so_far[MEGREZ_ROWS];
    for (int64_t q = 0; q < at->count; q++) {
        so_far[q] = (progress){-__builtin_inff(), 0};
        memset(partial_of(all, head_of(all, at, at->first + q), at->part), 0, (size_t)all->width * sizeof(float));
    }
    for (; start < end; start += KEYS) attend_block(all, &seeing, start, megrez_least(end, start + KEYS), so_far);
    for (int64_t q = 0; q < at->count; q++) {
        float *state = partial_of(all, head_of(all, at, at->first + q), at->part) + all->width;
        state[0] = so_far[q].largest, state[1] = so_far[q].sum;
    }
}

/* All parts of the keys that a work item's queries see, one after the other. */
PASS static void attend_whole(const megrez_attention *all, const place *at, int64_t valid, int64_t seen, int64_t last) {
    progress so_far[MEGREZ_ROWS];
    for (int64_t q = 0; q < at->count; q++) {
        so_far[q] = (progress){-__builtin_inff(), 0};
        memset(all->outputs + head_of(all, at, at->first + q) * all->width, 0, (size_t)all->width * sizeof(float));
    }
    for (int64_t part = seen / MEGREZ_PART; part * MEGREZ_PART < last; part++) {
        const int64_t start = part * MEGREZ_PART;
        attend_part(all, at, valid, megrez_most(seen, start), megrez_least(last, start + MEGREZ_PART));
        for (int64_t q = 0; q < at->count; q++) {
            const int64_t head = head_of(all, at, at->first + q);
            merge(partial_of(all, head, 0), all->width, all->outputs + head * all->width, so_far + q);
        }
    }
    for (int64_t q = 0; q < at->count; q++)
        normalise(all->width, all->outputs + head_of(all, at, at->first + q) * all->width, so_far + q);
}

static void attend(const megrez_attention *all, int64_t piece) {
    const place at = place_of(all, piece);
    const int64_t group = all->heads / all->kv_heads, past = all->lengths[at.row] - all->fresh[at.row];
    /* The others are padding. */
    const int64_t valid = megrez_most(0, megrez_least(at.count, all->fresh[at.row] * group - at.first));
    const int64_t first = past + at.first / group, last = valid ? past + (at.first + valid - 1) / group + 1 : 0;
    /* Blocks of keys begin at multiples of KEYS, whichever queries see them. */
    const int64_t seen = all->window ? megrez_most(0, first + 1 - all->window) / KEYS * KEYS : 0;
    const int64_t start = at.part * MEGREZ_PART;
    if (all->parts > 1)
        attend_part(all, &at, valid, megrez_most(seen, start), megrez_least(last, start + MEGREZ_PART));
    else
        attend_whole(all, &at, valid, seen, last);
}

PASS static void join(const megrez_attention *all, int64_t token) {
    for (int64_t head = token * all->heads; head < (token + 1) * all->heads; head++) {
        float *output = all->outputs + head * all->width;
        progress so_far = {-__builtin_inff(), 0};
        memset(output, 0, (size_t)all->width * sizeof *output);
        for (int64_t p = 0; p < all->parts; p++) merge(partial_of(all, head, p), all->width, output, &so_far);
        normalise(all->width, output, &so_far);
    }
}
