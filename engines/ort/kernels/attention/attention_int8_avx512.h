/* The steps of attention_int8.h with AVX-512 and its VNNI. */

/* As in attention_int8_avx2.h. */
KERNEL float round_weights(const float *weights, const float *scales, int64_t from, int64_t to, int16_t *codes) {
    __m512 scaled[KEYS / 16], largest = _mm512_setzero_ps();
    __mmask16 finite = 0xffff;
    UNROLLED
    for (int n = 0; n < KEYS / 16; n++) {
        const __m512 product = _mm512_mul_ps(_mm512_loadu_ps(weights + 16 * n), _mm512_loadu_ps(scales + 16 * n));
        scaled[n] = _mm512_maskz_mov_ps(those_within(16 * n, from, to), product);
        largest = _mm512_max_ps(largest, scaled[n]);
        finite &= _mm512_cmp_ps_mask(scaled[n], _mm512_set1_ps(__builtin_inff()), _CMP_LT_OQ);
    }
    const float most = finite == 0xffff ? _mm512_reduce_max_ps(largest) : __builtin_nanf("");
    const __m512 steps = _mm512_set1_ps(most > 0 ? 32767 / most : 0);
    UNROLLED
    for (int n = 0; n < KEYS / 16; n++) {
        const __m512i found = _mm512_cvtps_epi32(_mm512_mul_ps(scaled[n], steps));
        _mm256_storeu_si256((__m256i *)(codes + 16 * n), _mm512_cvtsepi32_epi16(found));
    }
    return most / 32767;
}

/* Those of 32 channels that a row has from `n` on. */
KERNEL __mmask32 channels_left(int64_t n, int64_t width) {
    return width - n >= 32 ? 0xffffffff : (__mmask32)((1u << (width - n)) - 1);
}

KERNEL __m512i halved_integer_lanes(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

/* As score in attention_float_avx512.h, without the scales. */
KERNEL void score_int8(const float *const *queries, const int count, const int8_t *key, int64_t keys, int64_t width,
                       float *scores) {
    for (int64_t k = 0; k < keys; k += KEYS_AT_ONCE) {
        __m512i found[TILE][KEYS_AT_ONCE], four[TILE];
        UNROLLED
        for (int q = 0; q < TILE; q++)
            UNROLLED
            for (int n = 0; n < KEYS_AT_ONCE; n++) found[q][n] = _mm512_setzero_si512();
        for (int64_t n = 0; n < width; n += 32) {
            const __mmask32 there = channels_left(n, width);
            __m512i codes[KEYS_AT_ONCE];
            UNROLLED
            for (int m = 0; m < KEYS_AT_ONCE; m++) {
                const int8_t *from = key + megrez_least(k + m, keys - 1) * width + n;
                prefetch_next(from, width);
                codes[m] = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(there, from));
            }
            UNROLLED
            for (int q = 0; q < count; q++) {
                const __m512i query = _mm512_maskz_loadu_epi16(there, (const int16_t *)queries[q] + n);
                UNROLLED
                for (int m = 0; m < KEYS_AT_ONCE; m++) found[q][m] = _mm512_dpwssd_epi32(found[q][m], query, codes[m]);
            }
        }
        UNROLLED
        for (int q = 0; q < TILE; q++)
            four[q] = q < count ? integer_fours(found[q][0], found[q][1], found[q][2], found[q][3]) : _mm512_setzero_si512();
        const __m512i sums =
            halved_integer_lanes(halved_integer_lanes(four[0], four[1]), halved_integer_lanes(four[2], four[3]));
        write_scores(_mm512_cvtepi32_ps(sums), count, scores + k);
    }
}

/* For 32 * vectors columns, of which `there` are in each; two keys at a time. The columns of a vector are added up in
 * another order: of each eight, the first four in the first half of the sums.
 */
KERNEL void gather_columns_int8(const int16_t *codes, const int8_t *value, int64_t from, int64_t to, int64_t width,
                                const int count, const int vectors, const __mmask32 there, const float *kept,
                                const float *factors, float *const *outputs, int64_t column) {
    __m512i found[TILE][2][2];
    UNROLLED
    for (int q = 0; q < count; q++)
        UNROLLED
        for (int v = 0; v < vectors; v++) found[q][v][0] = found[q][v][1] = _mm512_setzero_si512();
    for (int64_t k = from & ~INT64_C(1); k < to; k += 2) {
        const int8_t *first = value + k * width + column, *second = k + 1 < to ? first + width : first;
        prefetch_next(first, width), prefetch_next(second, width);
        __m512i parts[2][2];
        UNROLLED
        for (int v = 0; v < vectors; v++) {
            const __m512i a = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(there, first + 32 * v));
            const __m512i b = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(there, second + 32 * v));
            parts[v][0] = _mm512_unpacklo_epi16(a, b), parts[v][1] = _mm512_unpackhi_epi16(a, b);
        }
        UNROLLED
        for (int q = 0; q < count; q++) {
            int32_t pair;
            memcpy(&pair, codes + q * KEYS + k, sizeof pair);
            const __m512i both = _mm512_set1_epi32(pair);
            UNROLLED
            for (int v = 0; v < vectors; v++)
                UNROLLED
                for (int h = 0; h < 2; h++) found[q][v][h] = _mm512_dpwssd_epi32(found[q][v][h], both, parts[v][h]);
        }
    }
    const __m512i orders[] = {
        _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23),
        _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31),
    };
    UNROLLED
    for (int q = 0; q < count; q++)
        UNROLLED
        for (int v = 0; v < vectors; v++)
            UNROLLED
            for (int h = 0; h < 2; h++) {
                const __mmask16 some = (__mmask16)(there >> 16 * h);
                float *output = outputs[q] + column + 32 * v + 16 * h;
                const __m512 before = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, output), _mm512_set1_ps(kept[q]));
                const __m512i sums = _mm512_permutex2var_epi32(found[q][v][0], orders[h], found[q][v][1]);
                const __m512 after = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(factors[q]), before);
                _mm512_mask_storeu_ps(output, some, after);
            }
}

/* outputs[q] * kept[q] + factors[q] * codes[q] x values. */
KERNEL void gather_int8(const int16_t *codes, const int8_t *value, int64_t from, int64_t to, int64_t width,
                        const int count, const float *kept, const float *factors, float *const *outputs) {
    int64_t column = 0;
    for (; column + 64 <= width; column += 64)
        gather_columns_int8(codes, value, from, to, width, count, 2, 0xffffffff, kept, factors, outputs, column);
    for (; column < width; column += 32)
        gather_columns_int8(codes, value, from, to, width, count, 1, channels_left(column, width), kept, factors,
                            outputs, column);
}
