/* Products with one instruction set: a source defines MULTIPLY, the name of its function, and includes this. Products of
 * a block are summed exactly, in integers.
 *
 * An output is the sum of 8 float sums, of the blocks n, n + 8, n + 16 and so on, added in this order whatever the
 * number of inputs and the instruction set: it does not depend on them.
 */
#include "products_streamed.h"
#include "products_tiled.h"

#ifdef MEGREZ_HAS_AVX2

/* Bytes: the codes of blocks from which on four inputs are faster without a tile. */
enum { LARGE_BLOCK = 64 };
/* So many inputs of smaller blocks are. */
#ifdef MEGREZ_AVX512
enum { MOST_STREAMED = 2 };
#else
enum { MOST_STREAMED = 3 };
#endif

/* Rows times few inputs as fast as memory is read, times many as fast as they can be computed. */
KERNEL void multiply_shape(const megrez_weights *weights, const megrez_inputs *inputs, const int bits, const int block,
                           int64_t first_row, int64_t last_row, float *outputs) {
    const int most = bits * block / 8 >= LARGE_BLOCK ? STREAMED : MOST_STREAMED;
    if (inputs->count == 1)
        multiply_streamed(weights, inputs, bits, block, 1, first_row, last_row, outputs);
    else if (most >= 2 && inputs->count == 2)
        multiply_streamed(weights, inputs, bits, block, 2, first_row, last_row, outputs);
    else if (most >= 3 && inputs->count == 3)
        multiply_streamed(weights, inputs, bits, block, 3, first_row, last_row, outputs);
    else if (most >= 4 && inputs->count == 4)
        multiply_streamed(weights, inputs, bits, block, 4, first_row, last_row, outputs);
    else
        multiply_tiled(weights, inputs, bits, block, first_row, last_row, outputs);
}

#define SHAPE(bits, block)                                                                                 \
    AVX2 static void multiply_##bits##_##block(const megrez_weights *weights, const megrez_inputs *inputs, \
                                               int64_t first_row, int64_t last_row, float *outputs) {      \
        multiply_shape(weights, inputs, bits, block, first_row, last_row, outputs);                        \
    }
SHAPE(4, 16)
SHAPE(4, 32)
SHAPE(4, 64)
SHAPE(4, 128)
SHAPE(4, 256)
SHAPE(8, 16)
SHAPE(8, 32)
SHAPE(8, 64)
SHAPE(8, 128)
SHAPE(8, 256)

void MULTIPLY(const megrez_weights *weights, const megrez_inputs *inputs, int64_t first_row, int64_t last_row,
              float *outputs) {
    static megrez_multiplier *const of_4[] = {multiply_4_16, multiply_4_32, multiply_4_64, multiply_4_128, multiply_4_256};
    static megrez_multiplier *const of_8[] = {multiply_8_16, multiply_8_32, multiply_8_64, multiply_8_128, multiply_8_256};
    const int which = __builtin_ctzll((unsigned long long)weights->block) - 4; /* 16 is 2 to the 4th */
    (weights->bits == 4 ? of_4 : of_8)[which](weights, inputs, first_row, last_row, outputs);
}

#endif
