/* Products with AVX-512 and its VNNI. */
#include "products.h"

#ifdef MEGREZ_HAS_VNNI

#define MEGREZ_INSTRUCTIONS "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#define MEGREZ_VNNI
#define MEGREZ_AVX512
#define MULTIPLY megrez_multiply_avx512
#include "products_shapes.h"

#endif
