/* Products with AVX-512 and its VNNI. */
#include "avx512.h"
#include "products.h"

#ifdef MEGREZ_HAS_VNNI

#define MULTIPLY megrez_multiply_avx512
#include "products_shapes.h"

#endif
