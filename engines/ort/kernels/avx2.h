/* Macros for the AVX2 sources, which are compiled for AVX2 whatever the compiler's target is; a source may define
 * MEGREZ_INSTRUCTIONS first, to be compiled for more.
 */
#ifndef MEGREZ_AVX2_H
#define MEGREZ_AVX2_H

#if defined(__x86_64__) && defined(__GNUC__)
#define MEGREZ_HAS_AVX2 1

#include <immintrin.h>

#ifndef MEGREZ_INSTRUCTIONS
#define MEGREZ_INSTRUCTIONS "avx2,fma,f16c"
#endif
#define AVX2 __attribute__((target(MEGREZ_INSTRUCTIONS)))
/* Always inlined with constant arguments, so that each shape has its own loop. */
#define KERNEL __attribute__((target(MEGREZ_INSTRUCTIONS), always_inline)) static inline
/* Loops with constant bounds: once unrolled, the arrays that they index are kept in registers. */
#define UNROLLED _Pragma("GCC unroll 16")
#define ROLLED _Pragma("GCC unroll 1")

/* Keeps a vector in a register at this point: otherwise the compiler reorders integer sums and spills their terms. */
#define KEPT(vector) __asm__("" : "+v"(vector))

KERNEL __m256i load(const void *from) { return _mm256_loadu_si256((const __m256i *)from); }

/* The halves of each added: those of `lower` first. */
KERNEL __m256i add_halves(__m256i lower, __m256i upper) {
    return _mm256_add_epi32(_mm256_permute2x128_si256(lower, upper, 0x20), _mm256_permute2x128_si256(lower, upper, 0x31));
}

KERNEL float sum_of(__m256 values) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

/* e to the power of x, which is at most 0: within two units in the last place, by its series around the nearest power
 * of two.
 */
KERNEL __m256 exponential(__m256 x) {
    x = _mm256_max_ps(_mm256_set1_ps(-87), x); /* in this order NaN is preserved */
    const __m256 power = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), 0);
    x = _mm256_fnmadd_ps(power, _mm256_set1_ps(0.693145752f), x); /* ln 2 in two parts */
    x = _mm256_fnmadd_ps(power, _mm256_set1_ps(1.42860677e-6f), x);
    __m256 found = _mm256_set1_ps(1.f / 5040);
    static const float factors[] = {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1, 1};
    UNROLLED
    for (int n = 0; n < 7; n++) found = _mm256_fmadd_ps(found, x, _mm256_set1_ps(factors[n]));
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(power), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(found), exponent));
}

#endif
#endif
