/* Matrix products with AVX2. Products of a block are summed exactly, in integers: pairs of 4-bit codes times int8 are
 * below 3,811 in magnitude, so the sum of eight fits 16 bits: a block of 256. 8-bit codes are split into two of 4.
 */
#include "products.h"
#include "avx2.h"

#ifdef MEGREZ_HAS_AVX2

#include <cpuid.h>
#include <string.h>

enum {
    ROWS_AT_ONCE = 16,  /* their codes stay in the L1 cache for all inputs */
    INPUTS_AT_ONCE = 4, /* as many as the registers hold */
    AHEAD = 4096,       /* bytes: the next page, where hardware prefetching stops */
};

bool megrez_takes(const megrez_weights *weights) {
    const int64_t block = weights->block;
    return (weights->bits == 4 || weights->bits == 8) && block >= 16 && block <= 256 && !(block & (block - 1));
}

bool megrez_runs(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool megrez_has_better(void) {
    unsigned eax, ebx, ecx, edx;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ecx >> 11 & 1)) return true; /* AVX-512 VNNI */
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);            /* AVX-VNNI */
}

KERNEL float sum_of(__m256 values) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

/* The zero-point correction of a row for each of `count` inputs: the sum over blocks of scale * point * sum. */
KERNEL void offsets(const megrez_weights *weights, int64_t row, const int count, const float *sums, float *found) {
    const int64_t blocks = weights->blocks;
    const bool narrow = weights->bits == 4;
    const float *scales = weights->scales + row * blocks;
    const uint8_t *points = weights->zero_points;
    if (points) points += row * (narrow ? (blocks + 1) / 2 : blocks);
    __m256 vectors[INPUTS_AT_ONCE];
    UNROLLED
    for (int i = 0; i < count; i++) vectors[i] = _mm256_setzero_ps(), found[i] = 0;
    int64_t n = 0;
    for (; n + 8 <= blocks; n += 8) {
        __m256i point = _mm256_set1_epi32(narrow ? 8 : 128);
        if (points && narrow) {
            int32_t eight;
            memcpy(&eight, points + n / 2, sizeof eight);
            point = _mm256_srlv_epi32(_mm256_set1_epi32(eight), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
            point = _mm256_and_si256(point, _mm256_set1_epi32(15));
        } else if (points) {
            point = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(points + n)));
        }
        const __m256 shift = _mm256_mul_ps(_mm256_cvtepi32_ps(point), _mm256_loadu_ps(scales + n));
        UNROLLED
        for (int i = 0; i < count; i++)
            vectors[i] = _mm256_fmadd_ps(shift, _mm256_loadu_ps(sums + i * blocks + n), vectors[i]);
    }
    for (; n < blocks; n++) {
        const int point = !points ? (narrow ? 8 : 128) : narrow ? points[n / 2] >> (n % 2 * 4) & 15 : points[n];
        UNROLLED
        for (int i = 0; i < count; i++) found[i] += scales[n] * (float)point * sums[i * blocks + n];
    }
    UNROLLED
    for (int i = 0; i < count; i++) found[i] += sum_of(vectors[i]);
}

/* Pairwise products of 64 codes, the lower and the upper halves of 32 bytes, with inputs: 16 sums of 16 bits. */
KERNEL __m256i products_of(__m256i lower, __m256i upper, const int8_t *input) {
    return _mm256_add_epi16(_mm256_maddubs_epi16(lower, load(input)), _mm256_maddubs_epi16(upper, load(input + 32)));
}

KERNEL __m256 floats(__m256i sums_of_16_bits) {
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(sums_of_16_bits, _mm256_set1_epi16(1)));
}

KERNEL __m256 scaled(float scale, float input_scale) {
    return _mm256_mul_ps(_mm256_set1_ps(scale), _mm256_set1_ps(input_scale));
}

/* The lower halves of 32 bytes and, in `upper`, the upper ones. */
KERNEL __m256i halves(__m256i packed, __m256i *upper) {
    const __m256i half = _mm256_set1_epi8(15);
    *upper = _mm256_and_si256(_mm256_srli_epi16(packed, 4), half);
    return _mm256_and_si256(packed, half);
}

/* 64 codes of a row times 64 values of each input, added to sums of 16 bits. */
KERNEL void add_64_of_4(__m256i packed, const int count, int64_t stride, const int8_t *inputs, __m256i *sums) {
    __m256i upper;
    const __m256i lower = halves(packed, &upper);
    UNROLLED
    for (int i = 0; i < count; i++)
        sums[i] = _mm256_add_epi16(sums[i], products_of(lower, upper, inputs + i * stride));
}

/* One row times `count` inputs; 4 bits, blocks of `vectors` times 64. */
KERNEL void row_of_4(const megrez_weights *weights, int64_t row, const int vectors, const int count, int64_t stride,
                     const int8_t *inputs, const float *input_scales, __m256 *found) {
    const int64_t blocks = weights->blocks;
    const float *scales = weights->scales + row * blocks;
    const uint8_t *codes = weights->codes + row * blocks * vectors * 32;
    for (int64_t n = 0; n < blocks; n++) {
        __m256i sums[INPUTS_AT_ONCE];
        UNROLLED
        for (int i = 0; i < count; i++) sums[i] = _mm256_setzero_si256();
        if (count == 1) {
            UNROLLED
            for (int v = 0; v < vectors; v++, codes += 32, inputs += 64) {
                _mm_prefetch((const char *)codes + AHEAD, _MM_HINT_T0);
                add_64_of_4(load(codes), count, stride, inputs, sums);
            }
        } else {
            ROLLED
            for (int v = 0; v < vectors; v++, codes += 32, inputs += 64)
                add_64_of_4(load(codes), count, stride, inputs, sums);
        }
        UNROLLED
        for (int i = 0; i < count; i++)
            found[i] = _mm256_fmadd_ps(floats(sums[i]), scaled(scales[n], input_scales[i * blocks + n]), found[i]);
    }
}

/* The next `parts` scales, of which `left` exist, each repeated to fill a vector together; zeros for the others. */
KERNEL __m256 spread(const float *scales, const int parts, int64_t left) {
    const __m128i there = _mm_cmpgt_epi32(_mm_set1_epi32(left < parts ? (int)left : parts), _mm_setr_epi32(0, 1, 2, 3));
    const __m256i two = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1), four = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_maskload_ps(scales, there)), parts == 4 ? four : two);
}

/* 32 bytes of codes, of which only the first `left` belong to the row. */
KERNEL __m256i load_at_most(const uint8_t *codes, int64_t left) {
    if (left >= 32) return load(codes);
    uint8_t padded[32] = {0};
    memcpy(padded, codes, (size_t)left);
    return load(padded);
}

/* The same for blocks of 32 and 16, `parts` of which share a vector of 64 codes. */
KERNEL void row_of_4_in_parts(const megrez_weights *weights, int64_t row, const int parts, const int count,
                              int64_t stride, const int8_t *inputs, const float *input_scales, __m256 *found) {
    const int64_t blocks = weights->blocks;
    const float *scales = weights->scales + row * blocks;
    const uint8_t *codes = weights->codes + row * blocks * (32 / parts);
    for (int64_t n = 0; n < blocks; n += parts, codes += 32, inputs += 64) {
        const int64_t left = blocks - n;
        __m256i sums[INPUTS_AT_ONCE];
        UNROLLED
        for (int i = 0; i < count; i++) sums[i] = _mm256_setzero_si256();
        if (count == 1) _mm_prefetch((const char *)codes + AHEAD, _MM_HINT_T0);
        add_64_of_4(load_at_most(codes, left * (32 / parts)), count, stride, inputs, sums);
        const __m256 scale = spread(scales + n, parts, left);
        UNROLLED
        for (int i = 0; i < count; i++) {
            const __m256 both = _mm256_mul_ps(scale, spread(input_scales + i * blocks + n, parts, left));
            found[i] = _mm256_fmadd_ps(floats(sums[i]), both, found[i]);
        }
    }
}

/* 32 codes of 8 bits times 32 values of each input: sums of 16 bits for the lower halves of the codes and the upper. */
KERNEL void add_32_of_8(__m256i packed, const int count, int64_t stride, const int8_t *inputs, __m256i *lower_sums,
                        __m256i *upper_sums) {
    __m256i upper;
    const __m256i lower = halves(packed, &upper);
    UNROLLED
    for (int i = 0; i < count; i++) {
        const __m256i input = load(inputs + i * stride);
        lower_sums[i] = _mm256_add_epi16(lower_sums[i], _mm256_maddubs_epi16(lower, input));
        upper_sums[i] = _mm256_add_epi16(upper_sums[i], _mm256_maddubs_epi16(upper, input));
    }
}

KERNEL __m256 floats_of_8(__m256i lower, __m256i upper) {
    const __m256i one = _mm256_set1_epi16(1), sixteenths = _mm256_madd_epi16(upper, one);
    return _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_madd_epi16(lower, one), _mm256_slli_epi32(sixteenths, 4)));
}

/* One row times `count` inputs; 8 bits, blocks of `vectors` times 32. */
KERNEL void row_of_8(const megrez_weights *weights, int64_t row, const int vectors, const int count, int64_t stride,
                     const int8_t *inputs, const float *input_scales, __m256 *found) {
    const int64_t blocks = weights->blocks;
    const float *scales = weights->scales + row * blocks;
    const uint8_t *codes = weights->codes + row * blocks * vectors * 32;
    for (int64_t n = 0; n < blocks; n++) {
        __m256i lower[INPUTS_AT_ONCE], upper[INPUTS_AT_ONCE];
        UNROLLED
        for (int i = 0; i < count; i++) lower[i] = upper[i] = _mm256_setzero_si256();
        if (count == 1) {
            UNROLLED
            for (int v = 0; v < vectors; v++, codes += 32, inputs += 32) {
                _mm_prefetch((const char *)codes + AHEAD, _MM_HINT_T0);
                add_32_of_8(load(codes), count, stride, inputs, lower, upper);
            }
        } else {
            ROLLED
            for (int v = 0; v < vectors; v++, codes += 32, inputs += 32)
                add_32_of_8(load(codes), count, stride, inputs, lower, upper);
        }
        UNROLLED
        for (int i = 0; i < count; i++) {
            const __m256 both = scaled(scales[n], input_scales[i * blocks + n]);
            found[i] = _mm256_fmadd_ps(floats_of_8(lower[i], upper[i]), both, found[i]);
        }
    }
}

/* The same for blocks of 16, two of which share a vector. */
KERNEL void row_of_8_in_16(const megrez_weights *weights, int64_t row, const int count, int64_t stride,
                           const int8_t *inputs, const float *input_scales, __m256 *found) {
    const int64_t blocks = weights->blocks;
    const float *scales = weights->scales + row * blocks;
    const uint8_t *codes = weights->codes + row * blocks * 16;
    for (int64_t n = 0; n < blocks; n += 2, codes += 32, inputs += 32) {
        const int64_t left = blocks - n;
        __m256i lower[INPUTS_AT_ONCE], upper[INPUTS_AT_ONCE];
        UNROLLED
        for (int i = 0; i < count; i++) lower[i] = upper[i] = _mm256_setzero_si256();
        add_32_of_8(load_at_most(codes, left * 16), count, stride, inputs, lower, upper);
        const __m256 scale = spread(scales + n, 2, left);
        UNROLLED
        for (int i = 0; i < count; i++) {
            const __m256 both = _mm256_mul_ps(scale, spread(input_scales + i * blocks + n, 2, left));
            found[i] = _mm256_fmadd_ps(floats_of_8(lower[i], upper[i]), both, found[i]);
        }
    }
}

/* One row times `count` inputs from `first` on; bits, block and count are constants wherever it is called. */
KERNEL void row_times(const megrez_weights *weights, int64_t row, const int bits, const int block, const int count,
                      const megrez_inputs *all, int64_t first, float *outputs) {
    const int64_t blocks = weights->blocks, stride = megrez_stride(weights);
    const int8_t *inputs = all->codes + first * stride;
    const float *scales = all->scales + first * blocks;
    __m256 found[INPUTS_AT_ONCE];
    float taken[INPUTS_AT_ONCE];
    UNROLLED
    for (int i = 0; i < count; i++) found[i] = _mm256_setzero_ps();
    if (bits == 8 && block == 16)
        row_of_8_in_16(weights, row, count, stride, inputs, scales, found);
    else if (bits == 8)
        row_of_8(weights, row, block / 32, count, stride, inputs, scales, found);
    else if (block < 64)
        row_of_4_in_parts(weights, row, 64 / block, count, stride, inputs, scales, found);
    else
        row_of_4(weights, row, block / 64, count, stride, inputs, scales, found);
    offsets(weights, row, count, all->sums + first * blocks, taken);
    const float bias = weights->bias ? weights->bias[row] : 0;
    UNROLLED
    for (int i = 0; i < count; i++)
        outputs[(first + i) * weights->rows + row] = sum_of(found[i]) - taken[i] + bias;
}

/* A function per shape: all rows of a group times a few inputs, then the next inputs. */
#define MULTIPLY(bits, block)                                                                                      \
    AVX2 static void multiply_##bits##_##block(const megrez_weights *weights, const megrez_inputs *inputs,         \
                                               int64_t first_row, int64_t last_row, float *outputs) {              \
        for (int64_t start = first_row; start < last_row; start += ROWS_AT_ONCE) {                                 \
            const int64_t end = start + ROWS_AT_ONCE < last_row ? start + ROWS_AT_ONCE : last_row;                 \
            int64_t i = 0;                                                                                         \
            for (; i + INPUTS_AT_ONCE <= inputs->count; i += INPUTS_AT_ONCE)                                       \
                for (int64_t row = start; row < end; row++)                                                        \
                    row_times(weights, row, bits, block, INPUTS_AT_ONCE, inputs, i, outputs);                      \
            for (; i < inputs->count; i++)                                                                         \
                for (int64_t row = start; row < end; row++)                                                        \
                    row_times(weights, row, bits, block, 1, inputs, i, outputs);                                   \
        }                                                                                                          \
    }
MULTIPLY(4, 16)
MULTIPLY(4, 32)
MULTIPLY(4, 64)
MULTIPLY(4, 128)
MULTIPLY(4, 256)
MULTIPLY(8, 16)
MULTIPLY(8, 32)
MULTIPLY(8, 64)
MULTIPLY(8, 128)
MULTIPLY(8, 256)

void megrez_multiply(const megrez_weights *weights, const megrez_inputs *inputs, int64_t first_row, int64_t last_row,
                     float *outputs) {
    typedef void multiply(const megrez_weights *, const megrez_inputs *, int64_t, int64_t, float *);
    static multiply *const of_4[] = {multiply_4_16, multiply_4_32, multiply_4_64, multiply_4_128, multiply_4_256};
    static multiply *const of_8[] = {multiply_8_16, multiply_8_32, multiply_8_64, multiply_8_128, multiply_8_256};
    const int which = __builtin_ctzll((unsigned long long)weights->block) - 4; /* 16 is 2 to the 4th */
    (weights->bits == 4 ? of_4 : of_8)[which](weights, inputs, first_row, last_row, outputs);
}

#else /* another processor or compiler: ONNX Runtime's own kernels run */

bool megrez_runs(void) { return false; }
bool megrez_has_better(void) { return true; }
bool megrez_takes(const megrez_weights *weights) { (void)weights; return false; }
void megrez_multiply(const megrez_weights *weights, const megrez_inputs *inputs, int64_t first_row, int64_t last_row,
                     float *outputs) {
    (void)weights, (void)inputs, (void)first_row, (void)last_row, (void)outputs;
}

#endif
