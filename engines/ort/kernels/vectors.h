/* Functions on one row of floats, with AVX2; independent of ONNX Runtime. */
#ifndef MEGREZ_VECTORS_H
#define MEGREZ_VECTORS_H

#include <stdint.h>

/* output = silu(gate) * up; `output` may be `gate`. */
void megrez_swiglu(const float *gate, const float *up, int64_t count, float *output);
/* output = input / sqrt(mean(input^2) + epsilon) * weight. */
void megrez_rms_norm(const float *input, const float *weight, float epsilon, int64_t count, float *output);
/* output = a + b; `output` may be either. */
void megrez_add(const float *a, const float *b, int64_t count, float *output);

#endif
