/* Products with AVX2 and AVX-VNNI. */
#include "products.h"

#ifdef MEGREZ_HAS_VNNI

#define MEGREZ_INSTRUCTIONS "avx2,fma,f16c,avxvnni"
#define MEGREZ_VNNI
#define MULTIPLY megrez_multiply_vnni
#include "products_shapes.h"

#endif
