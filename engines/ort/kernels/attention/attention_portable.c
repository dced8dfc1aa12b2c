/* The passes of attention in portable C, for caches that ONNX Runtime's kernels do not read. */
#include "attention_portable.h"

#define PASS
#include "attention_passes.h"

const megrez_attention_passes MEGREZ_ATTENTION_PORTABLE = {append, attend, join};
