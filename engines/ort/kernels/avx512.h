/* Included first by sources that are compiled for AVX-512 and its VNNI. */
#ifndef MEGREZ_AVX512_H
#define MEGREZ_AVX512_H

#define MEGREZ_INSTRUCTIONS "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#define MEGREZ_VNNI
#define MEGREZ_AVX512

#endif
