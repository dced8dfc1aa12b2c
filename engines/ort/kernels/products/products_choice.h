/* Included by a source behind its multiply_shape, which takes bits and block size as constants: one function for each of
 * them, and MULTIPLY, which chooses.
 */
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
