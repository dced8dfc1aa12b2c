/* Advanced Matrix Extensions: tiles of 16 rows of 64 bytes, and products of two of them in 32 bits.
 *
 * The instructions are written out: GCC's intrinsics before version 13 do not say which memory they read.
 */
#ifndef MEGREZ_AMX_H
#define MEGREZ_AMX_H

#include <stdint.h>

enum { TILE_ROWS = 16, TILE_BYTES = 64 };

/* As LDTILECFG reads it. Bytes and rows of each of the eight tiles. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* Tile numbers are literals. */
#define TILES_USE(shapes) __asm__ volatile("ldtilecfg %0" ::"m"(*(shapes)))
#define TILES_RELEASE() __asm__ volatile("tilerelease")
#define TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile ::)
#define TILE_LOAD(tile, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"((int64_t)(stride)) : "memory")
#define TILE_STORE(tile, to, stride) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"((int64_t)(stride)) : "memory")
/* sums += a times b: of each four bytes of a's rows, unsigned, and of b's columns, signed. */
#define TILE_MULTIPLY(sums, a, b) __asm__ volatile("tdpbusd %%tmm" #b ", %%tmm" #a ", %%tmm" #sums ::)

#endif
