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

#include "products_choice.h"

#endif
