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

static int find_level(void) {
    const char *setting = getenv("MEGREZ_KERNELS");
    const int most = !setting ? 3 : !strcmp(setting, "avx2") ? 1 : !strcmp(setting, "vnni") ? 2 : 3;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
#ifdef MEGREZ_HAS_VNNI
    unsigned eax, ebx, ecx, edx;
    if (most >= 3 && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
        return 3;
    if (most >= 2 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1)) return 2; /* AVX-VNNI */
#endif
    return 1;
}

int megrez_level(void) {
    static _Atomic int level = -1; /* virtual machines take microseconds for cpuid */
    if (level < 0) level = find_level();
    return level;
}

void megrez_multiply(const megrez_weights *weights, const megrez_inputs *inputs, int64_t first_row, int64_t last_row,
                     float *outputs) {
#ifdef MEGREZ_HAS_VNNI
    static megrez_multiplier *const all[] = {NULL, megrez_multiply_avx2, megrez_multiply_vnni, megrez_multiply_avx512};
#else
    static megrez_multiplier *const all[] = {NULL, megrez_multiply_avx2};
#endif
    all[megrez_level()](weights, inputs, first_row, last_row, outputs);
}

#else /* another processor or compiler: ONNX Runtime's own kernels run */

int megrez_level(void) { return 0; }
bool megrez_takes(const megrez_weights *weights) { (void)weights; return false; }
void megrez_multiply(const megrez_weights *weights, const megrez_inputs *inputs, int64_t first_row, int64_t last_row,
                     float *outputs) {
    (void)weights, (void)inputs, (void)first_row, (void)last_row, (void)outputs;
}

#endif
