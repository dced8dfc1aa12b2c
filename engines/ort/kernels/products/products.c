/* Which products there are, and the choice of an instruction set. */
#include "products.h"
#include "avx2.h"

#ifdef MEGREZ_HAS_AVX2

#include <cpuid.h>
#include <stdlib.h>
#include <string.h>

bool megrez_takes(const megrez_weights *weights) {
    const int64_t block = weights->block;
    return (weights->bits == 4 || weights->bits == 8) && block >= 16 && block <= 256 && !(block & (block - 1));
}

static megrez_instructions find_instructions(void) {
    const char *setting = getenv("MEGREZ_KERNELS");
    const bool only_avx2 = setting && !strcmp(setting, "avx2"), no_avx512 = setting && !strcmp(setting, "vnni");
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return MEGREZ_WITH_NONE;
    if (only_avx2) return MEGREZ_WITH_AVX2;
#ifdef MEGREZ_HAS_VNNI
    unsigned eax, ebx, ecx, edx;
    if (!no_avx512 && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
        return MEGREZ_WITH_AVX512;
    if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1)) return MEGREZ_WITH_VNNI; /* AVX-VNNI */
#else
    (void)no_avx512;
#endif
    return MEGREZ_WITH_AVX2;
}

megrez_instructions megrez_instructions_here(void) {
    static _Atomic int found = -1; /* virtual machines take microseconds for cpuid */
    if (found < 0) found = find_instructions();
    return (megrez_instructions)found;
}

void megrez_multiply(const megrez_weights *weights, const megrez_inputs *inputs, int64_t first_row, int64_t last_row,
                     float *outputs) {
#ifdef MEGREZ_HAS_VNNI
    static megrez_multiplier *const all[] = {NULL, megrez_multiply_avx2, megrez_multiply_vnni, megrez_multiply_avx512};
#else
    static megrez_multiplier *const all[] = {NULL, megrez_multiply_avx2};
#endif
    all[megrez_instructions_here()](weights, inputs, first_row, last_row, outputs);
}

#else /* another processor or compiler: ONNX Runtime's own kernels run */

megrez_instructions megrez_instructions_here(void) { return MEGREZ_WITH_NONE; }
bool megrez_takes(const megrez_weights *weights) { (void)weights; return false; }
void megrez_multiply(const megrez_weights *weights, const megrez_inputs *inputs, int64_t first_row, int64_t last_row,
                     float *outputs) {
    (void)weights, (void)inputs, (void)first_row, (void)last_row, (void)outputs;
}

#endif
