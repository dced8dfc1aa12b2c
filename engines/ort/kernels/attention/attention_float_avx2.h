/* The steps of attention_tile.h with AVX2. */
/* The sums of eight vectors. */
KERNEL __m256 sums_of(const __m256 *v) {
    const __m256 lower = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const __m256 upper = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(lower, upper, 0x20), _mm256_permute2f128_ps(lower, upper, 0x31));
}

/* Keeps eight floats in a register: otherwise the compiler loads them again for every use. */
KERNEL __m256 held(const float *from) {
    __m256 found = _mm256_loadu_ps(from);
    __asm__("" : "+x"(found));
    return found;
}

/* Scores of `count` queries with `keys` keys; `keys` rounded up to even are written of each row of KEYS. */
KERNEL void score(const float *const *queries, const int count, const float *key, int64_t keys, int64_t width,
                  float *scores) {
    for (int64_t k = 0; k < keys; k += 2) {
        const float *first = key + k * width, *second = k + 1 < keys ? first + width : first;
        __m256 found[2 * TILE];
        UNROLLED
        for (int n = 0; n < 2 * TILE; n++) found[n] = _mm256_setzero_ps();
        for (int64_t n = 0; n < width; n += 8) {
            const __m256 a = _mm256_loadu_ps(first + n), b = _mm256_loadu_ps(second + n);
            UNROLLED
            for (int q = 0; q < count; q++) {
                const __m256 query = held(queries[q] + n);
                found[2 * q] = _mm256_fmadd_ps(query, a, found[2 * q]);
                found[2 * q + 1] = _mm256_fmadd_ps(query, b, found[2 * q + 1]);
            }
        }
        float sums[2 * TILE];
        _mm256_storeu_ps(sums, sums_of(found));
        UNROLLED
        for (int q = 0; q < count; q++) memcpy(scores + q * KEYS + k, sums + 2 * q, 2 * sizeof *sums);
    }
}

/* Replace a query's KEYS scores by weights, 0 outside `from` to `to`; returns the factor for the earlier sums.
 * scales: of the keys, or NULL.
 */
KERNEL float weigh(float *scores, int64_t from, int64_t to, float scale, const float *scales, progress *so_far) {
    const __m256 nothing = _mm256_set1_ps(LEAST), factor = _mm256_set1_ps(scale);
    __m256 largest = nothing;
    for (int64_t n = 0; n < KEYS; n += 8) {
        __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(scores + n), factor);
        if (scales) scaled = _mm256_mul_ps(scaled, _mm256_loadu_ps(scales + n));
        const __m256 seen = _mm256_blendv_ps(nothing, scaled, within(n, from, to));
        _mm256_storeu_ps(scores + n, seen);
        largest = _mm256_max_ps(largest, seen);
    }
    float lanes[8], highest = so_far->largest, sum = 0;
    _mm256_storeu_ps(lanes, largest);
    for (int n = 0; n < 8; n++) highest = lanes[n] > highest ? lanes[n] : highest;
    __m256 sums = _mm256_setzero_ps();
    for (int64_t n = 0; n < KEYS; n += 8) {
        const __m256 seen = _mm256_loadu_ps(scores + n);
        const __m256 power = exponential(_mm256_sub_ps(seen, _mm256_set1_ps(highest)));
        const __m256 weight = _mm256_and_ps(power, within(n, from, to));
        _mm256_storeu_ps(scores + n, weight);
        sums = _mm256_add_ps(sums, weight);
    }
    _mm256_storeu_ps(lanes, sums);
    for (int n = 0; n < 8; n++) sum += lanes[n];
    const float kept = so_far->largest == highest ? 1 : exponential_of_one(so_far->largest - highest);
    *so_far = (progress){highest, so_far->sum * kept + sum};
    return kept;
}

/* For 8 * vectors columns. */
KERNEL void gather_columns(const float *weights, const float *value, int64_t from, int64_t to, int64_t width,
                           const int count, const int vectors, const float *kept, float *const *outputs,
                           int64_t column) {
    __m256 found[TILE][2];
    UNROLLED
    for (int q = 0; q < count; q++)
        UNROLLED
        for (int v = 0; v < vectors; v++)
            found[q][v] = _mm256_mul_ps(_mm256_loadu_ps(outputs[q] + column + 8 * v), _mm256_set1_ps(kept[q]));
    for (int64_t k = from; k < to; k++) {
        UNROLLED
        for (int v = 0; v < vectors; v++) {
            const __m256 part = _mm256_loadu_ps(value + k * width + column + 8 * v);
            UNROLLED
            for (int q = 0; q < count; q++)
                found[q][v] = _mm256_fmadd_ps(_mm256_set1_ps(weights[q * KEYS + k]), part, found[q][v]);
        }
    }
    UNROLLED
    for (int q = 0; q < count; q++)
        UNROLLED
        for (int v = 0; v < vectors; v++) _mm256_storeu_ps(outputs[q] + column + 8 * v, found[q][v]);
}

/* outputs[q] * kept[q] + weights[q] x values. */
KERNEL void gather(const float *weights, const float *value, int64_t from, int64_t to, int64_t width, const int count,
                   const float *kept, float *const *outputs) {
    int64_t column = 0;
    for (; column + 16 <= width; column += 16)
        gather_columns(weights, value, from, to, width, count, 2, kept, outputs, column);
    if (column < width) gather_columns(weights, value, from, to, width, count, 1, kept, outputs, column);
}
