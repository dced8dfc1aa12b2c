/* The passes of attention with AVX-512 and its VNNI. */
#include "avx512.h"
#include "products.h"

#ifdef MEGREZ_HAS_VNNI

#include "attention_cache.h"
#include "attention_tile.h"

#define PASS AVX2
#include "attention_passes.h"

const megrez_attention_passes MEGREZ_ATTENTION_AVX512 = {append, attend, join};

#endif
