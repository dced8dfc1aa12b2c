/* The steps of attention_tile.h with AVX-512. A query's results do not depend on how many others there are. */

enum { KEYS_AT_ONCE = 4 };

/* 16 floats, or the 8 that are left of a row. */
KERNEL __m512 floats(const float *from, const bool whole) {
    return whole ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(0xff, from);
}

/* The sums of four vectors in each 128 bits: parts of them. */
KERNEL __m512 fours(const __m512 *v) {
    const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    const __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
}

/* Of a and b, the 128 bits one after the other in pairs added. */
KERNEL __m512 halved_lanes(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

KERNEL void add_channels(const float *const *queries, const int count, const float *const *rows, int64_t n,
                         const bool whole, __m512 (*found)[KEYS_AT_ONCE]) {
    __m512 keys[KEYS_AT_ONCE];
    UNROLLED
    for (int k = 0; k < KEYS_AT_ONCE; k++) keys[k] = floats(rows[k] + n, whole);
    UNROLLED
    for (int q = 0; q < count; q++) {
        const __m512 query = floats(queries[q] + n, whole);
        UNROLLED
        for (int k = 0; k < KEYS_AT_ONCE; k++) found[q][k] = _mm512_fmadd_ps(query, keys[k], found[q][k]);
    }
}

/* Four keys' scores of each query, in one row of KEYS each. */
KERNEL void write_scores(__m512 sums, const int count, float *to) {
    _mm_storeu_ps(to, _mm512_castps512_ps128(sums));
    if (count > 1) _mm_storeu_ps(to + KEYS, _mm512_extractf32x4_ps(sums, 1));
    if (count > 2) _mm_storeu_ps(to + 2 * KEYS, _mm512_extractf32x4_ps(sums, 2));
    if (count > 3) _mm_storeu_ps(to + 3 * KEYS, _mm512_extractf32x4_ps(sums, 3));
}

/* Scores of `count` queries with `keys` keys; `keys` rounded up to a multiple of four are written of each row of KEYS. */
KERNEL void score(const float *const *queries, const int count, const float *key, int64_t keys, int64_t width,
                  float *scores) {
    for (int64_t k = 0; k < keys; k += KEYS_AT_ONCE) {
        const float *rows[KEYS_AT_ONCE];
        UNROLLED
        for (int n = 0; n < KEYS_AT_ONCE; n++) rows[n] = key + megrez_least(k + n, keys - 1) * width;
        __m512 found[TILE][KEYS_AT_ONCE], four[TILE];
        UNROLLED
        for (int q = 0; q < TILE; q++)
            UNROLLED
            for (int n = 0; n < KEYS_AT_ONCE; n++) found[q][n] = _mm512_setzero_ps();
        int64_t n = 0;
        for (; n + 16 <= width; n += 16) add_channels(queries, count, rows, n, true, found);
        if (n < width) add_channels(queries, count, rows, n, false, found);
        UNROLLED
        for (int q = 0; q < TILE; q++) four[q] = q < count ? fours(found[q]) : _mm512_setzero_ps();
        const __m512 sums = halved_lanes(halved_lanes(four[0], four[1]), halved_lanes(four[2], four[3]));
        write_scores(sums, count, scores + k);
    }
}

/* As `exponential` in avx2.h. */
KERNEL __m512 exponentials(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-87), x); /* in this order NaN is preserved */
    const __m512 power = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    x = _mm512_fnmadd_ps(power, _mm512_set1_ps(0.693145752f), x); /* ln 2 in two parts */
    x = _mm512_fnmadd_ps(power, _mm512_set1_ps(1.42860677e-6f), x);
    __m512 found = _mm512_set1_ps(1.f / 5040);
    static const float factors[] = {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1, 1};
    UNROLLED
    for (int n = 0; n < 7; n++) found = _mm512_fmadd_ps(found, x, _mm512_set1_ps(factors[n]));
    const __m512i exponent = _mm512_slli_epi32(_mm512_cvtps_epi32(power), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(found), exponent));
}

/* The keys from `n` on that are from `from` to `to`. */
KERNEL __mmask16 those_within(int64_t n, int64_t from, int64_t to) {
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i key = _mm512_add_epi32(_mm512_set1_epi32((int)n), order);
    const __mmask16 early = _mm512_cmplt_epi32_mask(key, _mm512_set1_epi32((int)from));
    return _mm512_mask_cmplt_epi32_mask((__mmask16)~early, key, _mm512_set1_epi32((int)to));
}

/* Replace a query's KEYS scores by weights, 0 outside `from` to `to`; returns the factor for the earlier sums.
 * scales: of the keys, or NULL.
 */
KERNEL float weigh(float *scores, int64_t from, int64_t to, float scale, const float *scales, progress *so_far) {
    const __m512 factor = _mm512_set1_ps(scale);
    __m512 seen[KEYS / 16], largest = _mm512_set1_ps(LEAST), sums = _mm512_setzero_ps();
    UNROLLED
    for (int n = 0; n < KEYS / 16; n++) {
        __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(scores + 16 * n), factor);
        if (scales) scaled = _mm512_mul_ps(scaled, _mm512_loadu_ps(scales + 16 * n));
        seen[n] = _mm512_mask_mov_ps(_mm512_set1_ps(LEAST), those_within(16 * n, from, to), scaled);
        largest = _mm512_max_ps(largest, seen[n]);
    }
    const float here = _mm512_reduce_max_ps(largest), highest = here > so_far->largest ? here : so_far->largest;
    UNROLLED
    for (int n = 0; n < KEYS / 16; n++) {
        const __m512 power = exponentials(_mm512_sub_ps(seen[n], _mm512_set1_ps(highest)));
        const __m512 weight = _mm512_maskz_mov_ps(those_within(16 * n, from, to), power);
        _mm512_storeu_ps(scores + 16 * n, weight);
        sums = _mm512_add_ps(sums, weight);
    }
    const float sum = _mm512_reduce_add_ps(sums);
    const float kept = so_far->largest == highest ? 1 : exponential_of_one(so_far->largest - highest);
    *so_far = (progress){highest, so_far->sum * kept + sum};
    return kept;
}

/* For 16 * vectors columns, or the last 8. */
KERNEL void gather_columns(const float *weights, const float *value, int64_t from, int64_t to, int64_t width,
                           const int count, const int vectors, const bool whole, const float *kept,
                           float *const *outputs, int64_t column) {
    __m512 found[TILE][4];
    UNROLLED
    for (int q = 0; q < count; q++)
        UNROLLED
        for (int v = 0; v < vectors; v++)
            found[q][v] = _mm512_mul_ps(floats(outputs[q] + column + 16 * v, whole), _mm512_set1_ps(kept[q]));
    for (int64_t k = from; k < to; k++) {
        __m512 parts[4];
        UNROLLED
        for (int v = 0; v < vectors; v++) parts[v] = floats(value + k * width + column + 16 * v, whole);
        UNROLLED
        for (int q = 0; q < count; q++) {
            const __m512 weight = _mm512_set1_ps(weights[q * KEYS + k]);
            UNROLLED
            for (int v = 0; v < vectors; v++) found[q][v] = _mm512_fmadd_ps(weight, parts[v], found[q][v]);
        }
    }
    UNROLLED
    for (int q = 0; q < count; q++)
        UNROLLED
        for (int v = 0; v < vectors; v++) {
            float *to_columns = outputs[q] + column + 16 * v;
            if (whole) _mm512_storeu_ps(to_columns, found[q][v]);
            else _mm512_mask_storeu_ps(to_columns, 0xff, found[q][v]);
        }
}

/* outputs[q] * kept[q] + weights[q] x values. */
KERNEL void gather(const float *weights, const float *value, int64_t from, int64_t to, int64_t width, const int count,
                   const float *kept, float *const *outputs) {
    int64_t column = 0;
    for (; column + 64 <= width; column += 64)
        gather_columns(weights, value, from, to, width, count, 4, true, kept, outputs, column);
    for (; column + 16 <= width; column += 16)
        gather_columns(weights, value, from, to, width, count, 1, true, kept, outputs, column);
    if (column < width) gather_columns(weights, value, from, to, width, count, 1, false, kept, outputs, column);
}
