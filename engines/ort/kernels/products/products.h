/* Products with matrices in blocks of 4 or 8 bits, as in ONNX Runtime's MatMulNBits; independent of ONNX Runtime. */
#ifndef MEGREZ_PRODUCTS_H
#define MEGREZ_PRODUCTS_H

#include <stdbool.h>
#include <stdint.h>

/* Row-major [rows, columns]; a row is `blocks` blocks of `block` codes, the last one padded.
 * codes [rows, blocks, block * bits / 8], 4-bit ones the lower half of a byte first; scales [rows, blocks];
 * zero_points [rows, blocks * bits / 8, rounded up], or NULL for 8 of 15, 128 of 255. bias [rows] or NULL. copies: the
 * owner of their memory if they are copies, see weights.h.
 */
typedef struct {
    int64_t rows, columns, block, bits, blocks;
    const uint8_t *codes;
    const float *scales;
    const uint8_t *zero_points;
    const float *bias;
    void *copies;
} megrez_weights;

/* `count` inputs of the weights' columns, rounded to int8 with a scale per block: codes [parts, count, columns of a
 * part] in the order in which the products read them, scales [count, blocks], and sums, of a block's codes times its
 * scale. Grouped ones are transposed: codes [groups, columns / 4, MEGREZ_GROUPED, 4], for weights of 4 bits the even ones
 * of each 128 columns or shorter block first; scales and sums [groups, blocks, MEGREZ_GROUPED].
 */
typedef struct {
    int64_t count;
    int8_t *codes;
    float *scales, *sums;
} megrez_inputs;

/* Compilers that know VNNI: GCC 11, Clang 12. */
#if defined(__x86_64__) && (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 11))
#define MEGREZ_HAS_VNNI 1
#endif

enum { MEGREZ_WORDS = 128 }; /* 32-bit words of a row that make a part */

/* Instruction sets; with NONE, none of the functions below can run. AVX512 has its VNNI, and AMX that too. */
typedef enum {
    MEGREZ_WITH_NONE, MEGREZ_WITH_AVX2, MEGREZ_WITH_VNNI, MEGREZ_WITH_AVX512, MEGREZ_WITH_AMX,
} megrez_instructions;
/* This processor's best, at most what MEGREZ_KERNELS named at the first call. */
megrez_instructions megrez_instructions_here(void);
static inline bool megrez_runs(void) { return megrez_instructions_here() != MEGREZ_WITH_NONE; }
/* A vector of 4-bit codes has so many, the even ones in the lower halves of its bytes: of an input's codes for them the
 * even ones come first.
 */
static inline int64_t megrez_group(void) { return megrez_instructions_here() >= MEGREZ_WITH_AVX512 ? 128 : 64; }
enum {
    MEGREZ_GROUPED = 16, /* inputs that AMX multiplies together */
    MEGREZ_UNGROUPED = 8 /* inputs that are faster without it, at most */
};
static inline bool megrez_are_grouped(int64_t count) {
    return count > MEGREZ_UNGROUPED && megrez_instructions_here() == MEGREZ_WITH_AMX;
}
/* As many inputs are rounded by one thread; of grouped ones so many that no two write to the same cache line. */
static inline int64_t megrez_inputs_a_piece(int64_t count) { return megrez_are_grouped(count) ? MEGREZ_GROUPED : 4; }
/* Inputs for which `count` of them take room. */
static inline int64_t megrez_with_padding(int64_t count) {
    return megrez_are_grouped(count) ? (count + MEGREZ_GROUPED - 1) / MEGREZ_GROUPED * MEGREZ_GROUPED : count;
}
/* Whether the weights' bits and block size are supported. */
bool megrez_takes(const megrez_weights *weights);
/* Columns of a part, which the words of a row hold. */
static inline int64_t megrez_part(int64_t bits) { return MEGREZ_WORDS * 32 / bits; }
/* Bytes of one input's codes, whole parts. */
static inline int64_t megrez_stride(const megrez_weights *weights) {
    const int64_t part = megrez_part(weights->bits);
    return (weights->blocks * weights->block + part - 1) / part * part;
}
/* Where the codes of inputs that are not grouped have the first column of a block of one. */
static inline int64_t megrez_place(int64_t bits, int64_t count, int64_t input, int64_t column) {
    const int64_t part = megrez_part(bits);
    return (column / part * count + input) * part + column % part;
}
/* Round one input of [columns]: each block's largest magnitude becomes 127; a block that is not finite becomes NaN.
 * If the weights have more columns, they multiply the means of the input's blocks, one each.
 */
void megrez_round(
    const megrez_weights *weights, const float *input, int64_t columns, const megrez_inputs *rounded, int64_t index
);
/* The result for an input is the same, to the bit, whatever other inputs there are.
 * Writes the columns first_row to last_row of the outputs [count, rows]. */
typedef void megrez_multiplier(
    const megrez_weights *weights, const megrez_inputs *inputs, int64_t first_row, int64_t last_row, float *outputs
);
/* With the fastest instruction set of this processor, and with a given one; all have the same results. */
megrez_multiplier megrez_multiply, megrez_multiply_avx2, megrez_multiply_vnni, megrez_multiply_avx512;
megrez_multiplier megrez_multiply_amx; /* grouped inputs */

#endif
