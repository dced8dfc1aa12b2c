/* How the AVX2 sources are written: for one processor family, whatever the compiler was told the target is. */
#ifndef MEGREZ_AVX2_H
#define MEGREZ_AVX2_H

#if defined(__x86_64__) && defined(__GNUC__)
#define MEGREZ_HAS_AVX2 1

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma")))
/* Always inlined with constant arguments, so that each shape has its own loop. */
#define KERNEL __attribute__((target("avx2,fma"), always_inline)) static inline
/* Loops with constant ends: what they index lives in registers once they are unrolled. */
#define UNROLLED _Pragma("GCC unroll 8")
#define ROLLED _Pragma("GCC unroll 1")

KERNEL __m256i load(const void *from) { return _mm256_loadu_si256((const __m256i *)from); }

#endif
#endif
