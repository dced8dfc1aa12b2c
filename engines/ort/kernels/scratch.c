/* A piece is kept as long as what is asked for is not much less: after a prompt, the first decoded token frees its. */
#include "scratch.h"
#include "lines.h"

#include <stdint.h>
#include <stdlib.h>

enum { MUCH = 4 };

/* In front of what is returned. */
typedef struct {
    void *allocated;
    size_t bytes;
} piece;

/* Keeps another piece, or none; returns the one before. */
static piece *exchange(piece *other) {
#ifdef __GNUC__
    static piece *spare;
    return __atomic_exchange_n(&spare, other, __ATOMIC_ACQ_REL);
#else
    return other; /* none is kept */
#endif
}

static void destroy(piece *old) {
    if (old) free(old->allocated);
}

void *megrez_scratch_take(size_t bytes) {
    piece *found = exchange(NULL);
    if (found && bytes <= found->bytes && found->bytes / MUCH <= bytes) return found + 1;
    destroy(found);
    char *base = malloc(bytes + sizeof *found + MEGREZ_LINE);
    if (!base) return NULL;
    char *aligned = (char *)megrez_on_lines((uintptr_t)(base + sizeof *found));
    found = (piece *)(void *)aligned - 1;
    *found = (piece){base, bytes};
    return aligned;
}

void megrez_scratch_return(void *taken) {
    destroy(exchange((piece *)taken - 1));
}
