/* Which products there are, and the choice of an instruction set. */
#include "products.h"
#include "avx2.h"

#ifdef MEGREZ_HAS_AVX2

#include <cpuid.h>
#include <stdlib.h>
#include <string.h>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

bool megrez_takes(const megrez_weights *weights) {
    const int64_t block = weights->block;
    return (weights->bits == 4 || weights->bits == 8) && block >= 16 && block <= 256 && !(block & (block - 1));
}

#ifdef MEGREZ_HAS_VNNI

/* Tiles of 8-bit integers, which Linux gives to a process that asks for them. */
static bool has_amx(void) {
#ifdef __linux__
    enum { ASK = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx >> 24 & 3) == 3 &&
           !syscall(SYS_arch_prctl, ASK, TILE_DATA);
#else
    return false;
#endif
}

/* At most `most`. */
static megrez_instructions better_than_avx2(megrez_instructions most) {
    unsigned eax, ebx, ecx, edx;
    if (most >= MEGREZ_WITH_AVX512 && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
        return most == MEGREZ_WITH_AMX && has_amx() ? MEGREZ_WITH_AMX : MEGREZ_WITH_AVX512;
    const bool avx_vnni = __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
    return most >= MEGREZ_WITH_VNNI && avx_vnni ? MEGREZ_WITH_VNNI : MEGREZ_WITH_AVX2;
}

#else
static megrez_instructions better_than_avx2(megrez_instructions most) { return (void)most, MEGREZ_WITH_AVX2; }
#endif

static megrez_instructions find_instructions(void) {
    static const char *const settings[] = {
        [MEGREZ_WITH_AVX2] = "avx2", [MEGREZ_WITH_VNNI] = "vnni", [MEGREZ_WITH_AVX512] = "avx512",
    };
    const char *setting = getenv("MEGREZ_KERNELS");
    megrez_instructions most = MEGREZ_WITH_AMX;
    for (int n = MEGREZ_WITH_AVX2; n < MEGREZ_WITH_AMX; n++)
        if (setting && !strcmp(setting, settings[n])) most = (megrez_instructions)n;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return MEGREZ_WITH_NONE;
    return better_than_avx2(most);
}

megrez_instructions megrez_instructions_here(void) {
    static _Atomic int found = -1; /* virtual machines take microseconds for cpuid */
    if (found < 0) found = find_instructions();
    return (megrez_instructions)found;
}

void megrez_multiply(const megrez_weights *weights, const megrez_inputs *inputs, int64_t first_row, int64_t last_row,
                     float *outputs) {
#ifdef MEGREZ_HAS_VNNI
    static megrez_multiplier *const all[] = {
        NULL, megrez_multiply_avx2, megrez_multiply_vnni, megrez_multiply_avx512, megrez_multiply_avx512,
    };
    if (megrez_are_grouped(inputs->count)) {
        megrez_multiply_amx(weights, inputs, first_row, last_row, outputs);
        return;
    }
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
