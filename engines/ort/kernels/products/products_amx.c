/* Products with AMX: 64 rows of a quantised matrix times groups of 16 inputs, whose codes megrez_round has transposed.
 *
 * The tiles sum the products of a block; scales and sums over blocks are those of products_shapes.h, in AVX-512, with a
 * lane for each input, so that the results are the same to the bit. While the tiles multiply, the products before are
 * scaled, the next columns are unpacked and the next rows are fetched.
 */
#define MEGREZ_INSTRUCTIONS "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"
#include "amx_rows.h"

#ifdef MEGREZ_HAS_VNNI

/* A part's products with a group that are to be scaled. */
typedef struct {
    part of;
    const float *scales, *sums;
    int64_t group; /* its sums' place, -1 if there is nothing to do */
} products_before;

/* The products of the rows' codes for a block and a group's, in the tiles 0 to 3. */
KERNEL void multiply_block(const some_rows *of, const int bits, const int block, const uint8_t *codes, const int8_t *inputs,
                           int64_t rows, int lines, other_work *work) {
    const int width = block < TILE_BYTES ? block : TILE_BYTES;
    enum { NEXT = TILE_ROWS * TILE_BYTES };
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    UNROLLED
    for (int n = 0; n < block / width; n++, codes += TILES * NEXT, inputs += NEXT) {
        TILE_LOAD(6, inputs, TILE_BYTES);
        TILE_LOAD(4, codes, TILE_BYTES);
        TILE_MULTIPLY(0, 4, 6);
        TILE_LOAD(5, codes + NEXT, TILE_BYTES);
        TILE_MULTIPLY(1, 5, 6);
        TILE_LOAD(4, codes + 2 * NEXT, TILE_BYTES);
        TILE_MULTIPLY(2, 4, 6);
        TILE_LOAD(5, codes + 3 * NEXT, TILE_BYTES);
        TILE_MULTIPLY(3, 5, 6);
        unpack_rows(of, bits, block, rows, work);
        fetch(lines, work);
    }
}

KERNEL void store_products(int32_t (*whole)[GROUP]) {
    TILE_STORE(0, whole[0], TILE_BYTES);
    TILE_STORE(1, whole[TILE_ROWS], TILE_BYTES);
    TILE_STORE(2, whole[2 * TILE_ROWS], TILE_BYTES);
    TILE_STORE(3, whole[3 * TILE_ROWS], TILE_BYTES);
}

/* Eight rows' products scaled and added up, from the part's sums so far on, or from 0. */
KERNEL void add_scaled(const some_rows *of, const products_before *before, int64_t row, const __m512 *sums, __m512 *found) {
    UNROLLED
    for (int r = 0; r < 8; r++) found[r] = sums ? sums[r] : _mm512_setzero_ps();
    for (int64_t b = 0, n = before->of.first; b < before->of.count; b++, n += SUMS) {
        const __m512 scale = _mm512_load_ps(before->scales + n * GROUP), sum = _mm512_load_ps(before->sums + n * GROUP);
        const float *scales = of->scales[n] + row, *shifts = of->shifts[n] + row;
        UNROLLED
        for (int r = 0; r < 8; r++) {
            const __m512 both = _mm512_mul_ps(_mm512_set1_ps(scales[r]), scale);
            found[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(of->whole[b][row + r])), both, found[r]);
            found[r] = _mm512_fnmadd_ps(_mm512_set1_ps(shifts[r]), sum, found[r]);
        }
    }
}

KERNEL void scale_products(some_rows *of, products_before *before) {
    const part done = before->of;
    if (before->group < 0) return;
    const bool is_first = done.first < SUMS, is_last = done.first + done.count * SUMS >= of->weights->blocks;
    const int kept = ORDER[done.place].kept, added = is_last ? ORDER[done.place].added : 0;
    for (int64_t row = 0; row < of->rows; row += 8) {
        __m512 found[8], *here = of->kept[kept][before->group] + row;
        add_scaled(of, before, row, is_first ? NULL : here, found);
        for (int n = 1; n <= added; n++) {
            here = of->kept[kept - n][before->group] + row;
            UNROLLED
            for (int r = 0; r < 8; r++) found[r] = _mm512_add_ps(here[r], found[r]);
        }
        UNROLLED
        for (int r = 0; r < 8; r++) here[r] = found[r];
    }
    before->group = -1;
}

/* A part, whose columns are unpacked, times the groups from `group` on. */
KERNEL void multiply_part(some_rows *of, const int bits, const int block, const megrez_inputs *inputs, part now, int which,
                          int64_t group, int64_t groups, products_before *before, other_work *work) {
    const int64_t floats = of->weights->blocks * GROUP, steps = block < TILE_BYTES ? 1 : block / TILE_BYTES;
    const int64_t all = now.count ? groups * now.count * steps : 1, rows = (ROWS + all - 1) / all;
    const int lines = (int)((now.count * block * bits / 8 * ROWS / 64 + all - 1) / all);
    const uint8_t *codes = of->codes[which][0][0];
    for (int64_t g = 0; g < groups; g++) {
        const int64_t at = (group + g) * floats;
        if (!now.count) scale_products(of, before);
        for (int64_t b = 0, n = now.first; b < now.count; b++, n += SUMS) {
            const int64_t column = b * block;
            multiply_block(of, bits, block, codes + column / TILE_BYTES * ROWS * TILE_BYTES + column % TILE_BYTES,
                           inputs->codes + (at + n * GROUP) * block, rows, lines, work);
            scale_products(of, before);
            store_products(of->whole[b]);
        }
        *before = (products_before){now, inputs->scales + at, inputs->sums + at, g};
    }
}

/* The outputs of a group's `count` inputs. */
KERNEL void write_group(const some_rows *of, const __m512 *found, int64_t count, float *outputs) {
    const megrez_weights *weights = of->weights;
    _Alignas(64) float sums[GROUP][ROWS];
    for (int64_t r = 0; r < of->rows; r += TILE_ROWS) {
        __m512 tile[16];
        UNROLLED
        for (int n = 0; n < 16; n++) tile[n] = found[r + n];
        transpose_16(tile);
        UNROLLED
        for (int n = 0; n < 16; n++) _mm512_store_ps(sums[n] + r, tile[n]);
    }
    for (int64_t i = 0; i < count; i++)
        for (int64_t r = 0; r < of->rows; r += TILE_ROWS) {
            const int64_t left = of->rows - r;
            const __mmask16 there = (__mmask16)(left < 16 ? (1 << left) - 1 : 65535);
            const float *bias = weights->bias + of->row + r;
            const __m512 more = weights->bias ? _mm512_maskz_loadu_ps(there, bias) : _mm512_setzero_ps();
            _mm512_mask_storeu_ps(outputs + i * weights->rows + of->row + r, there,
                                  _mm512_add_ps(_mm512_load_ps(sums[i] + r), more));
        }
}

/* The rows times the groups from `first` to `last`, at most GROUPS. */
KERNEL void multiply_rows(some_rows *of, const megrez_inputs *inputs, const int bits, const int block, int64_t first,
                          int64_t last, float *outputs) {
    const int64_t blocks = of->weights->blocks, after = of->weights->rows - of->row - ROWS;
    products_before before = {.group = -1};
    other_work work;
    work.next = work.end = (const char *)of->weights->codes + (of->row + ROWS) * of->length;
    if (!first && after > 0) work.end += of->length * (after < ROWS ? after : ROWS);
    part now = find_part(blocks, block, 0, 0), next;
    begin_part(of, bits, block, now, 0, &work);
    for (int which = 0; now.place < SUMS; now = next, which ^= 1) {
        unpack_rows(of, bits, block, ROWS, &work);
        next = part_after(blocks, block, now);
        begin_part(of, bits, block, next, !which, &work);
        multiply_part(of, bits, block, inputs, now, which, first, last - first, &before, &work);
    }
    scale_products(of, &before);
    for (int64_t g = first; g < last; g++) {
        const int64_t left = inputs->count - g * GROUP, count = left < GROUP ? left : GROUP;
        write_group(of, of->kept[0][g - first], count, outputs + g * GROUP * of->weights->rows);
    }
}

KERNEL void multiply_shape(const megrez_weights *weights, const megrez_inputs *inputs, const int bits, const int block,
                           int64_t first_row, int64_t last_row, float *outputs) {
    const int64_t groups = (inputs->count + GROUP - 1) / GROUP, blocks = weights->blocks;
    const int width = block < TILE_BYTES ? block : TILE_BYTES;
    const tile_shapes shapes = {
        .palette = 1,
        .bytes = {64, 64, 64, 64, (uint16_t)width, (uint16_t)width, 64},
        .rows = {16, 16, 16, 16, 16, 16, (uint8_t)(width / 4)},
    };
    float scales[2 * blocks][ROWS];
    _Alignas(64) some_rows of;
    of.weights = weights, of.length = blocks * block * bits / 8;
    of.scales = scales, of.shifts = scales + blocks;
    TILES_USE(&shapes);
    for (of.row = first_row; of.row < last_row; of.row += ROWS) {
        of.rows = last_row - of.row < ROWS ? last_row - of.row : ROWS;
        read_scales(&of, bits);
        for (int64_t g = 0; g < groups; g += GROUPS)
            multiply_rows(&of, inputs, bits, block, g, g + GROUPS < groups ? g + GROUPS : groups, outputs);
    }
    TILES_RELEASE();
}

#define MULTIPLY megrez_multiply_amx
#include "products_choice.h"

#endif
