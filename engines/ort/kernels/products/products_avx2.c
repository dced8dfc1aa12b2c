/* Products with AVX2: pairs of 4-bit codes times int8 are below 3,811 in magnitude, so the sum of eight fits 16 bits. 8-bit
 * codes are split into two of 4.
 */
#define MULTIPLY megrez_multiply_avx2
#include "products_shapes.h"
