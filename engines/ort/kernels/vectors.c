/* SwiGLU, RMS normalisation and addition of one row. */
#include "vectors.h"
#include "avx2.h"

#ifdef MEGREZ_HAS_AVX2

#include <math.h>

/* The lanes of the last vector of a row that are within it. */
KERNEL __m256i within(int64_t left) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)left), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

KERNEL __m256 gated(__m256 gate, __m256 up) {
    const __m256 sign = _mm256_set1_ps(-0.f), one = _mm256_set1_ps(1);
    const __m256 power = exponential(_mm256_or_ps(gate, sign)); /* of -|gate|: never overflows */
    const __m256 share = _mm256_div_ps(_mm256_blendv_ps(one, power, gate), _mm256_add_ps(one, power));
    return _mm256_mul_ps(_mm256_mul_ps(gate, share), up);
}

AVX2 void megrez_swiglu(const float *gate, const float *up, int64_t count, float *output) {
    int64_t n = 0;
    for (; n + 8 <= count; n += 8)
        _mm256_storeu_ps(output + n, gated(_mm256_loadu_ps(gate + n), _mm256_loadu_ps(up + n)));
    if (n == count) return;
    const __m256i there = within(count - n);
    const __m256 last = gated(_mm256_maskload_ps(gate + n, there), _mm256_maskload_ps(up + n, there));
    _mm256_maskstore_ps(output + n, there, last);
}

/* Four sums of eight, so that one addition need not wait for the one before. */
KERNEL float sum_of_squares(const float *input, int64_t count) {
    __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    int64_t n = 0;
    for (; n + 32 <= count; n += 32)
        UNROLLED
        for (int k = 0; k < 4; k++) {
            const __m256 values = _mm256_loadu_ps(input + n + 8 * k);
            sums[k] = _mm256_fmadd_ps(values, values, sums[k]);
        }
    for (; n < count; n += 8) {
        const __m256 values = count - n >= 8 ? _mm256_loadu_ps(input + n) : _mm256_maskload_ps(input + n, within(count - n));
        sums[0] = _mm256_fmadd_ps(values, values, sums[0]);
    }
    return sum_of(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
}

AVX2 void megrez_rms_norm(const float *input, const float *weight, float epsilon, int64_t count, float *output) {
    const float factor = 1 / sqrtf(sum_of_squares(input, count) / (float)count + epsilon);
    const __m256 factors = _mm256_set1_ps(factor);
    int64_t n = 0;
    for (; n + 8 <= count; n += 8) {
        const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(input + n), factors);
        _mm256_storeu_ps(output + n, _mm256_mul_ps(scaled, _mm256_loadu_ps(weight + n)));
    }
    for (; n < count; n++) output[n] = input[n] * factor * weight[n];
}

AVX2 void megrez_add(const float *a, const float *b, int64_t count, float *output) {
    int64_t n = 0;
    for (; n + 8 <= count; n += 8)
        _mm256_storeu_ps(output + n, _mm256_add_ps(_mm256_loadu_ps(a + n), _mm256_loadu_ps(b + n)));
    for (; n < count; n++) output[n] = a[n] + b[n];
}

#else /* the operators that use them are not registered */

void megrez_swiglu(const float *gate, const float *up, int64_t count, float *output) {
    (void)gate, (void)up, (void)count, (void)output;
}
void megrez_rms_norm(const float *input, const float *weight, float epsilon, int64_t count, float *output) {
    (void)input, (void)weight, (void)epsilon, (void)count, (void)output;
}
void megrez_add(const float *a, const float *b, int64_t count, float *output) { (void)a, (void)b, (void)count, (void)output; }

#endif
