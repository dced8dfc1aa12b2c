/* Products with AMX: 64 rows of a quantised matrix times groups of 16 inputs, whose codes megrez_round has transposed.
 *
 * The tiles sum the products of a block; scales and sums over blocks are those of products_shapes.h, in AVX-512, with a
 * lane for each input, so that the results are the same to the bit. While the tiles multiply, the products before are
 * scaled, the next columns are unpacked and the next rows are fetched.
 */
#define MEGREZ_INSTRUCTIONS "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"
#include "amx.h"
#include "avx2.h"
#include "products.h"

#ifdef MEGREZ_HAS_VNNI

#include <string.h>

enum {
    GROUP = MEGREZ_GROUPED,
    GROUPS = 8,     /* whose sums are kept while the columns of 64 rows are read */
    TILES = 4,      /* of rows: each tile of inputs that is loaded is used for all of them */
    ROWS = TILES * TILE_ROWS,
    COLUMNS = 256,  /* of the rows that are unpacked at once, at most */
    BLOCKS = 4,     /* that these are, at most */
    SUMS = 8,       /* an output has, of blocks 8 apart: a part of a matrix's columns are some of such blocks */
    LEVELS = 4,     /* of these sums: those that others are to be added to, and those of the part */
};

/* The parts' order: each of the 8 sums is added to those before it as soon as the order of sum_of allows it, and few are
 * kept. kept: how many there are before; added: to so many of them.
 */
static const struct {
    int8_t sum, kept, added;
} ORDER[SUMS] = {{0, 0, 0}, {4, 1, 1}, {2, 1, 0}, {6, 2, 2}, {1, 1, 0}, {5, 2, 1}, {3, 2, 0}, {7, 3, 3}};

typedef uint8_t unpacked[COLUMNS / TILE_BYTES][ROWS][TILE_BYTES];
typedef __m512 kept_sums[GROUPS][ROWS];

/* The `rows` rows from `row` on. scales and shifts: of each block and row, its scale and the scale's product with the
 * zero point. whole: the products of blocks with a group, of each row.
 */
typedef struct {
    unpacked codes[2];
    int32_t whole[BLOCKS][ROWS][GROUP];
    kept_sums kept[LEVELS];
    const megrez_weights *weights;
    int64_t row, rows, length; /* bytes of a row's codes */
    float (*scales)[ROWS], (*shifts)[ROWS];
} some_rows;

/* `count` blocks from `first` on, 8 apart; place: in ORDER. */
typedef struct {
    int64_t place, first, count;
} part;

/* What is done meanwhile: rows of a part that are unpacked, from one on, and cache lines that are fetched. */
typedef struct {
    const uint8_t *from;
    uint8_t *to;
    int64_t row, blocks;
    const char *next, *end;
} other_work;

/* A part's products with a group that are to be scaled. */
typedef struct {
    part of;
    const float *scales, *sums;
    int64_t group; /* its sums' place, -1 if there is nothing to do */
} products_before;

KERNEL part find_part(int64_t blocks, const int block, int64_t place, int64_t first) {
    const int64_t most = COLUMNS / block < BLOCKS ? COLUMNS / block : BLOCKS, left = (blocks - first + SUMS - 1) / SUMS;
    return (part){place, first, left < 0 ? 0 : left < most ? left : most};
}

KERNEL part part_after(int64_t blocks, const int block, part of) {
    const int64_t next = of.first + of.count * SUMS;
    if (of.count && next < blocks) return find_part(blocks, block, of.place, next);
    return of.place + 1 < SUMS ? find_part(blocks, block, of.place + 1, ORDER[of.place + 1].sum) : (part){SUMS, 0, 0};
}

/* 64 bytes of a row's packed codes: pieces of `bytes` bytes, of blocks 8 apart, of which `blocks` exist. */
KERNEL __m512i load_pieces(const uint8_t *from, const int bytes, int64_t blocks) {
#define PIECE(n) (from + ((n) < blocks ? (n) * SUMS * bytes : 0))
    if (bytes >= 64) return _mm512_loadu_si512(from);
    if (bytes == 32)
        return _mm512_inserti64x4(_mm512_castsi256_si512(load(PIECE(0))), load(PIECE(1)), 1);
    __m512i found = _mm512_setzero_si512();
    uint64_t words[8];
    if (bytes == 16) {
        found = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)PIECE(0)));
        found = _mm512_inserti32x4(found, _mm_loadu_si128((const __m128i *)PIECE(1)), 1);
        found = _mm512_inserti32x4(found, _mm_loadu_si128((const __m128i *)PIECE(2)), 2);
        return _mm512_inserti32x4(found, _mm_loadu_si128((const __m128i *)PIECE(3)), 3);
    }
    UNROLLED
    for (int n = 0; n < 8; n++) memcpy(words + n, PIECE(n), sizeof *words);
    memcpy(&found, words, sizeof found);
    return found;
#undef PIECE
}

/* 128 codes of 4 bits, the even ones of each block, or of each 128, first: see megrez_round. */
KERNEL void split(__m512i packed, const int block, uint8_t *to) {
    const __m512i half = _mm512_set1_epi8(15);
    __m512i first = _mm512_and_si512(packed, half), second = _mm512_and_si512(_mm512_srli_epi16(packed, 4), half);
    if (block < 128) { /* pieces of block / 2 bytes alternate */
        const __m512i order = block == 64   ? _mm512_setr_epi64(0, 1, 2, 3, 8, 9, 10, 11)
                              : block == 32 ? _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11)
                                            : _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
        const __m512i even = first;
        first = _mm512_permutex2var_epi64(even, order, second);
        second = _mm512_permutex2var_epi64(even, _mm512_add_epi64(order, _mm512_set1_epi64(4)), second);
    }
    _mm512_store_si512(to, first);
    _mm512_store_si512(to + ROWS * TILE_BYTES, second);
}

/* One row of a part. */
KERNEL void unpack_row(const uint8_t *from, const int bits, const int block, int64_t blocks, uint8_t *to) {
    const int bytes = block * bits / 8, pieces = bytes < 64 ? 64 / bytes : 1, vectors = bytes < 64 ? 1 : bytes / 64;
    for (int b = 0; b < blocks; b += pieces)
        UNROLLED
        for (int n = 0; n < vectors; n++) {
            const __m512i packed = load_pieces(from + b * SUMS * bytes + n * 64, bytes, blocks - b);
            uint8_t *codes = to + (b * block / TILE_BYTES + n * 8 / bits) * ROWS * TILE_BYTES;
            if (bits == 4) split(packed, block, codes);
            else _mm512_store_si512(codes, packed);
        }
}

/* The next `rows` rows of the work. Its fields are copied: vectors that are stored might change them. */
KERNEL void unpack_rows(const some_rows *of, const int bits, const int block, int64_t rows, other_work *work) {
    const int64_t first = work->row, last = first + rows < of->rows ? first + rows : of->rows, blocks = work->blocks;
    const int64_t length = of->length;
    const uint8_t *from = work->from;
    uint8_t *to = work->to;
    if (first >= last || !blocks) return;
    for (int64_t row = first; row < last; row++, from += length) unpack_row(from, bits, block, blocks, to + row * TILE_BYTES);
    work->row = last, work->from = from;
}

/* A part's columns are to be unpacked. */
KERNEL void begin_part(some_rows *of, const int bits, const int block, part next, int which, other_work *work) {
    work->from = of->weights->codes + of->row * of->length + next.first * block * bits / 8;
    work->to = of->codes[which][0][0];
    work->row = 0, work->blocks = next.count;
}

KERNEL void fetch(int lines, other_work *work) {
    for (int n = 0; n < lines && work->next < work->end; n++, work->next += 64) _mm_prefetch(work->next, _MM_HINT_T1);
}

/* The zero points of 16 blocks, of which `left` exist. */
KERNEL __m512 sixteen_points(const uint8_t *packed, const int bits, int64_t left) {
    const __mmask16 there = (__mmask16)((1 << (left * bits + 7) / 8) - 1);
    __m128i points = _mm_maskz_loadu_epi8(there, packed);
    if (bits == 4) {
        const __m128i half = _mm_set1_epi8(15), odd = _mm_and_si128(_mm_srli_epi16(points, 4), half);
        points = _mm_unpacklo_epi8(_mm_and_si128(points, half), odd);
    }
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(points));
}

/* Rows become columns. */
KERNEL void transpose_16(__m512 *v) {
    __m512 w[16];
    UNROLLED
    for (int n = 0; n < 16; n += 2)
        w[n] = _mm512_unpacklo_ps(v[n], v[n + 1]), w[n + 1] = _mm512_unpackhi_ps(v[n], v[n + 1]);
    UNROLLED
    for (int n = 0; n < 16; n += 4)
        UNROLLED
        for (int m = 0; m < 2; m++) {
            const __m512d a = _mm512_castps_pd(w[n + m]), b = _mm512_castps_pd(w[n + m + 2]);
            v[n + 2 * m] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            v[n + 2 * m + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    UNROLLED
    for (int n = 0; n < 4; n++)
        UNROLLED
        for (int m = 0; m < 16; m += 8) {
            w[m + n] = _mm512_shuffle_f32x4(v[m + n], v[m + n + 4], 0x88);
            w[m + n + 4] = _mm512_shuffle_f32x4(v[m + n], v[m + n + 4], 0xdd);
        }
    UNROLLED
    for (int n = 0; n < 8; n++) {
        v[n] = _mm512_shuffle_f32x4(w[n], w[n + 8], 0x88);
        v[n + 8] = _mm512_shuffle_f32x4(w[n], w[n + 8], 0xdd);
    }
}

KERNEL void read_scales(some_rows *of, const int bits) {
    const megrez_weights *weights = of->weights;
    const int64_t blocks = weights->blocks, length = (blocks * bits + 7) / 8;
    const __m512 middle = _mm512_set1_ps(bits == 4 ? 8 : 128);
    for (int64_t n = 0; n < blocks; n += 16)
        for (int64_t r = 0; r < of->rows; r += 16) {
            const int64_t left = blocks - n < 16 ? blocks - n : 16;
            const __mmask16 there = (__mmask16)((1 << left) - 1);
            __m512 scales[16], shifts[16];
            UNROLLED
            for (int m = 0; m < 16; m++) {
                const int64_t row = of->row + (r + m < of->rows ? r + m : r);
                scales[m] = _mm512_maskz_loadu_ps(there, weights->scales + row * blocks + n);
                const __m512 point = weights->zero_points
                    ? sixteen_points(weights->zero_points + row * length + n * bits / 8, bits, left) : middle;
                shifts[m] = _mm512_mul_ps(scales[m], point);
            }
            transpose_16(scales), transpose_16(shifts);
            for (int64_t m = 0; m < left; m++) {
                _mm512_storeu_ps(of->scales[n + m] + r, scales[m]);
                _mm512_storeu_ps(of->shifts[n + m] + r, shifts[m]);
            }
        }
}

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
        of.rows = weights->rows - of.row < ROWS ? weights->rows - of.row : ROWS;
        read_scales(&of, bits);
        for (int64_t g = 0; g < groups; g += GROUPS)
            multiply_rows(&of, inputs, bits, block, g, g + GROUPS < groups ? g + GROUPS : groups, outputs);
    }
    TILES_RELEASE();
}

#define SHAPE(bits, block)                                                                                 \
    AVX2 static void multiply_##bits##_##block(const megrez_weights *weights, const megrez_inputs *inputs, \
                                               int64_t first_row, int64_t last_row, float *outputs) {      \
        multiply_shape(weights, inputs, bits, block, first_row, last_row, outputs);                        \
    }
#define SHAPES(bits) SHAPE(bits, 16) SHAPE(bits, 32) SHAPE(bits, 64) SHAPE(bits, 128) SHAPE(bits, 256)
SHAPES(4)
SHAPES(8)

void megrez_multiply_amx(const megrez_weights *weights, const megrez_inputs *inputs, int64_t first_row, int64_t last_row,
                         float *outputs) {
    static megrez_multiplier *const of_4[] = {multiply_4_16, multiply_4_32, multiply_4_64, multiply_4_128, multiply_4_256};
    static megrez_multiplier *const of_8[] = {multiply_8_16, multiply_8_32, multiply_8_64, multiply_8_128, multiply_8_256};
    const int which = __builtin_ctzll((unsigned long long)weights->block) - 4; /* 16 is 2 to the 4th */
    (weights->bits == 4 ? of_4 : of_8)[which](weights, inputs, first_row, last_row, outputs);
}

#endif
