/* The passes of attention with AVX2. */
#include "attention_cache.h"
#include "attention_tile.h"

#ifdef MEGREZ_HAS_AVX2

#define PASS AVX2
#include "attention_passes.h"

const megrez_attention_passes MEGREZ_ATTENTION_AVX2 = {append, attend, join};

#endif
