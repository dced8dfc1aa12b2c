/* Sizes and addresses rounded up, to cache lines mostly. */
#ifndef MEGREZ_LINES_H
#define MEGREZ_LINES_H

#include <stddef.h>

enum { MEGREZ_LINE = 64 }; /* bytes */

static inline size_t megrez_rounded_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }
static inline size_t megrez_on_lines(size_t bytes) { return megrez_rounded_up(bytes, MEGREZ_LINE); }

#endif
