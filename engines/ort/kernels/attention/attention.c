/* Attention's division into work items, and the choice of an instruction set. */
#include "attention.h"
#include "avx2.h"
#include "products.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

bool megrez_attends(int64_t width, megrez_cache_format format) {
    return width > 0 && width % 8 == 0 && (format == MEGREZ_FLOAT32 || width <= MEGREZ_WIDEST);
}

size_t megrez_attention_plan(megrez_attention *all) {
    const int64_t queries = all->tokens * (all->heads / all->kv_heads);
    int64_t longest = 1;
    for (int64_t row = 0; row < all->rows; row++) longest = megrez_most(longest, all->lengths[row]);
    all->blocks = (queries + MEGREZ_ROWS - 1) / MEGREZ_ROWS;
    all->parts = all->blocks > 1 ? 1 : (longest + MEGREZ_PART - 1) / MEGREZ_PART;
    if (all->scale == 0) all->scale = 1 / sqrtf((float)all->width);
    const size_t heads = (size_t)(all->count * all->heads), width = (size_t)all->width;
    return heads * (width + (size_t)all->parts * (width + 2));
}

void megrez_attention_use(megrez_attention *all, float *room) {
    all->rotated_queries = room;
    all->partial = room + all->count * all->heads * all->width;
}

int64_t megrez_attention_pieces(const megrez_attention *all) {
    return all->rows * all->kv_heads * all->blocks * all->parts;
}

#ifdef MEGREZ_HAS_AVX2

#include <cpuid.h>

static bool converts_halves(void) {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx >> 29 & 1); /* F16C */
}

const megrez_attention_passes *megrez_attention_here(void) {
    const char *setting = getenv("MEGREZ_KERNELS");
    const bool portable = setting && !strcmp(setting, "portable");
    if (portable || !megrez_runs() || !converts_halves()) return &MEGREZ_ATTENTION_PORTABLE;
#ifdef MEGREZ_HAS_VNNI
    if (megrez_instructions_here() >= MEGREZ_WITH_AVX512) return &MEGREZ_ATTENTION_AVX512;
#endif
    return &MEGREZ_ATTENTION_AVX2;
}

#else

const megrez_attention_passes *megrez_attention_here(void) { return &MEGREZ_ATTENTION_PORTABLE; }

#endif
