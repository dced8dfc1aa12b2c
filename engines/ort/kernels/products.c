/* Matrix products with AVX2. Products of a block are summed exactly, in integers: pairs of 4-bit codes times int8 are
 * below 3,811 in magnitude, so the sum of eight fits 16 bits. 8-bit codes are split into two of 4.
 *
 * An output is the sum of 8 float sums, of the blocks n, n + 8, n + 16 and so on, added in this order whatever the
 * number of inputs: it does not depend on the others.
 */
#include "products.h"
#include "products_streamed.h"
#include "products_tiled.h"

#ifdef MEGREZ_HAS_AVX2

#include <cpuid.h>

/* Bytes: the codes of blocks from which on four inputs, not only three, are faster without a tile. */
enum { LARGE_BLOCK = 64 };

bool megrez_takes(const megrez_weights *weights) {
    const int64_t block = weights->block;
    return (weights->bits == 4 || weights->bits == 8) && block >= 16 && block <= 256 && !(block & (block - 1));
}

bool megrez_runs(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool megrez_has_better(void) {
    unsigned eax, ebx, ecx, edx;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ecx >> 11 & 1)) return true; /* AVX-512 VNNI */
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);            /* AVX-VNNI */
}

/* Rows times few inputs as fast as memory is read, times many as fast as they can be computed. */
KERNEL void multiply_shape(const megrez_weights *weights, const megrez_inputs *inputs, const int bits, const int block,
                           int64_t first_row, int64_t last_row, float *outputs) {
    const bool large = bits * block / 8 >= LARGE_BLOCK;
    if (inputs->count == 1)
        multiply_streamed(weights, inputs, bits, block, 1, first_row, last_row, outputs);
    else if (inputs->count == 2)
        multiply_streamed(weights, inputs, bits, block, 2, first_row, last_row, outputs);
    else if (inputs->count == 3)
        multiply_streamed(weights, inputs, bits, block, 3, first_row, last_row, outputs);
    else if (large && inputs->count == 4)
        multiply_streamed(weights, inputs, bits, block, 4, first_row, last_row, outputs);
    else
        multiply_tiled(weights, inputs, bits, block, first_row, last_row, outputs);
}

#define MULTIPLY(bits, block)                                                                              \
    AVX2 static void multiply_##bits##_##block(const megrez_weights *weights, const megrez_inputs *inputs, \
                                               int64_t first_row, int64_t last_row, float *outputs) {      \
        multiply_shape(weights, inputs, bits, block, first_row, last_row, outputs);                        \
    }
MULTIPLY(4, 16)
MULTIPLY(4, 32)
MULTIPLY(4, 64)
MULTIPLY(4, 128)
MULTIPLY(4, 256)
MULTIPLY(8, 16)
MULTIPLY(8, 32)
MULTIPLY(8, 64)
MULTIPLY(8, 128)
MULTIPLY(8, 256)

void megrez_multiply(const megrez_weights *weights, const megrez_inputs *inputs, int64_t first_row, int64_t last_row,
                     float *outputs) {
    typedef void multiply(const megrez_weights *, const megrez_inputs *, int64_t, int64_t, float *);
    static multiply *const of_4[] = {multiply_4_16, multiply_4_32, multiply_4_64, multiply_4_128, multiply_4_256};
    static multiply *const of_8[] = {multiply_8_16, multiply_8_32, multiply_8_64, multiply_8_128, multiply_8_256};
    const int which = __builtin_ctzll((unsigned long long)weights->block) - 4; /* 16 is 2 to the 4th */
    (weights->bits == 4 ? of_4 : of_8)[which](weights, inputs, first_row, last_row, outputs);
}

#else /* another processor or compiler: ONNX Runtime's own kernels run */

bool megrez_runs(void) { return false; }
bool megrez_has_better(void) { return true; }
bool megrez_takes(const megrez_weights *weights) { (void)weights; return false; }
void megrez_multiply(const megrez_weights *weights, const megrez_inputs *inputs, int64_t first_row, int64_t last_row,
                     float *outputs) {
    (void)weights, (void)inputs, (void)first_row, (void)last_row, (void)outputs;
}

#endif
