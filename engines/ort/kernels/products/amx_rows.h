/* 64 rows of a quantised matrix for AMX: their scales, and some of their columns at a time, unpacked to bytes. */
#ifndef MEGREZ_AMX_ROWS_H
#define MEGREZ_AMX_ROWS_H

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
 * zero point. whole: the products of blocks with a group, of each row. kept: sums over blocks, see ORDER. Of rows beyond
 * the last one, codes and what follows from them are whatever was there.
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

KERNEL part find_part(int64_t blocks, const int block, int64_t place, int64_t first) {
    const int64_t most = COLUMNS / block < BLOCKS ? COLUMNS / block : BLOCKS, left = (blocks - first + SUMS - 1) / SUMS;
    return (part){place, first, left < most ? left : most};
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
    for (int64_t row = first; row < last; row++, from += length)
        unpack_row(from, bits, block, blocks, to + row * TILE_BYTES);
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

#endif
#endif
