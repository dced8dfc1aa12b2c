/* The steps of attention_int8.h with AVX2. */

/* A query's KEYS weights times the values' scales, in 16 bits; returns their scale. 0 outside `from` to `to`. */
KERNEL float round_weights(const float *weights, const float *scales, int64_t from, int64_t to, int16_t *codes) {
    float scaled[KEYS];
    for (int64_t n = 0; n < KEYS; n += 8) {
        const __m256 product = _mm256_mul_ps(_mm256_loadu_ps(weights + n), _mm256_loadu_ps(scales + n));
        _mm256_storeu_ps(scaled + n, _mm256_and_ps(product, within(n, from, to)));
    }
    const float most = largest_of(scaled, KEYS);
    const __m256 steps = _mm256_set1_ps(most > 0 ? 32767 / most : 0);
    for (int64_t n = 0; n < KEYS; n += 16) {
        const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(scaled + n), steps));
        const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(scaled + n + 8), steps));
        _mm256_storeu_si256((__m256i *)(codes + n), _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8));
    }
    return most / 32767;
}

/* a and b in pairs of 16 bits, added to `sums`. */
KERNEL __m256i add_pairs(__m256i sums, __m256i a, __m256i b) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
}

/* The sums of eight vectors of 32-bit integers. */
KERNEL __m256i integer_sums_of(const __m256i *v) {
    const __m256i lower = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    const __m256i upper = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4], v[5]), _mm256_hadd_epi32(v[6], v[7]));
    return add_halves(lower, upper);
}

/* As score in attention_tile.h, without the scales. Of a width that is no multiple of 16, the last 8 channels are added
 * by vectors whose upper half is zero.
 */
KERNEL void score_int8(const float *const *queries, const int count, const int8_t *key, int64_t keys, int64_t width,
                       float *scores) {
    for (int64_t k = 0; k < keys; k += 2) {
        const int8_t *first = key + k * width, *second = k + 1 < keys ? first + width : first;
        prefetch_next(first, width), prefetch_next(second, width);
        __m256i found[2 * TILE];
        UNROLLED
        for (int n = 0; n < 2 * TILE; n++) found[n] = _mm256_setzero_si256();
        for (int64_t n = 0; n + 16 <= width; n += 16) {
            const __m256i a = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(first + n)));
            const __m256i b = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(second + n)));
            UNROLLED
            for (int q = 0; q < count; q++) {
                const __m256i query = load((const int16_t *)queries[q] + n);
                found[2 * q] = add_pairs(found[2 * q], query, a);
                found[2 * q + 1] = add_pairs(found[2 * q + 1], query, b);
            }
        }
        if (width % 16) {
            const int64_t n = width - 8;
            const __m256i a = _mm256_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)(first + n)));
            const __m256i b = _mm256_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)(second + n)));
            UNROLLED
            for (int q = 0; q < count; q++) {
                const __m128i codes = _mm_loadu_si128((const __m128i *)((const int16_t *)queries[q] + n));
                const __m256i query = _mm256_zextsi128_si256(codes);
                found[2 * q] = add_pairs(found[2 * q], query, a);
                found[2 * q + 1] = add_pairs(found[2 * q + 1], query, b);
            }
        }
        float sums[2 * TILE];
        _mm256_storeu_ps(sums, _mm256_cvtepi32_ps(integer_sums_of(found)));
        UNROLLED
        for (int q = 0; q < count; q++) memcpy(scores + q * KEYS + k, sums + 2 * q, 2 * sizeof *sums);
    }
}

/* For 8 or 16 columns; two keys at a time. */
KERNEL void gather_columns_int8(const int16_t *codes, const int8_t *value, int64_t from, int64_t to, int64_t width,
                                const int count, const int vectors, const float *kept, const float *factors,
                                float *const *outputs, int64_t column) {
    __m256i found[TILE][2];
    UNROLLED
    for (int q = 0; q < count; q++) found[q][0] = found[q][1] = _mm256_setzero_si256();
    for (int64_t k = from & ~INT64_C(1); k < to; k += 2) {
        const int8_t *first = value + k * width + column, *second = k + 1 < to ? first + width : first;
        prefetch_next(first, width), prefetch_next(second, width);
        __m256i part[2];
        if (vectors == 2) {
            const __m128i a = _mm_loadu_si128((const __m128i *)first), b = _mm_loadu_si128((const __m128i *)second);
            part[0] = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b));
            part[1] = _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b));
        } else {
            const __m128i a = _mm_loadl_epi64((const __m128i *)first), b = _mm_loadl_epi64((const __m128i *)second);
            part[0] = part[1] = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b));
        }
        UNROLLED
        for (int q = 0; q < count; q++) {
            int32_t pair;
            memcpy(&pair, codes + q * KEYS + k, sizeof pair);
            UNROLLED
            for (int v = 0; v < vectors; v++)
                found[q][v] = add_pairs(found[q][v], _mm256_set1_epi32(pair), part[v]);
        }
    }
    UNROLLED
    for (int q = 0; q < count; q++)
        UNROLLED
        for (int v = 0; v < vectors; v++) {
            float *output = outputs[q] + column + 8 * v;
            const __m256 before = _mm256_mul_ps(_mm256_loadu_ps(output), _mm256_set1_ps(kept[q]));
            const __m256 sums = _mm256_cvtepi32_ps(found[q][v]);
            _mm256_storeu_ps(output, _mm256_fmadd_ps(sums, _mm256_set1_ps(factors[q]), before));
        }
}

/* outputs[q] * kept[q] + factors[q] * codes[q] x values. */
KERNEL void gather_int8(const int16_t *codes, const int8_t *value, int64_t from, int64_t to, int64_t width,
                        const int count, const float *kept, const float *factors, float *const *outputs) {
    int64_t column = 0;
    for (; column + 16 <= width; column += 16)
        gather_columns_int8(codes, value, from, to, width, count, 2, kept, factors, outputs, column);
    if (column < width)
        gather_columns_int8(codes, value, from, to, width, count, 1, kept, factors, outputs, column);
}
