/* Quantises a product's inputs to int8, in the order in which the product reads them. */
#include "avx2.h"
#include "products.h"

#ifdef MEGREZ_HAS_AVX2

#include <float.h>
#include <math.h>
#include <string.h>

/* Blocks with no larger magnitude become zeros: 127 divided by less would be infinite. */
static const float SMALLEST = 1e-36f;

/* Infinite if a value is not finite: as integers, magnitudes compare in the same order, with NaN the largest. */
KERNEL float largest_magnitude(const float *values, int64_t count) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff), infinity = _mm256_set1_epi32(0x7f800000);
    __m256i largest = _mm256_setzero_si256();
    for (int64_t n = 0; n < count; n += 8)
        largest = _mm256_max_epi32(largest, _mm256_and_si256(load(values + n), magnitude));
    float lanes[8], found = 0;
    _mm256_storeu_ps(lanes, _mm256_castsi256_ps(_mm256_min_epi32(largest, infinity)));
    for (int n = 0; n < 8; n++) found = lanes[n] > found ? lanes[n] : found;
    return found;
}

/* 16 values times `factor` as int8, in order; returns their sum. */
KERNEL int32_t round_16(const float *values, __m256 factor, int8_t *codes) {
    const __m256i first = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values), factor));
    const __m256i second = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values + 8), factor));
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i *)codes, bytes);
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(_mm256_add_epi32(first, second)),
                                _mm256_extracti128_si256(_mm256_add_epi32(first, second), 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

/* Of 64. */
KERNEL void evens_first(int8_t *codes) {
    const __m256i low = _mm256_set1_epi16(0xff), first = load(codes), second = load(codes + 32);
    const __m256i even = _mm256_packus_epi16(_mm256_and_si256(first, low), _mm256_and_si256(second, low));
    const __m256i odd = _mm256_packus_epi16(_mm256_srli_epi16(first, 8), _mm256_srli_epi16(second, 8));
    _mm256_storeu_si256((__m256i *)codes, _mm256_permute4x64_epi64(even, 0xd8));
    _mm256_storeu_si256((__m256i *)(codes + 32), _mm256_permute4x64_epi64(odd, 0xd8));
}

/* Of 128. */
KERNEL void more_evens_first(int8_t *codes) {
    evens_first(codes), evens_first(codes + 64);
    const __m256i odd = load(codes + 32), even = load(codes + 64);
    _mm256_storeu_si256((__m256i *)(codes + 32), even);
    _mm256_storeu_si256((__m256i *)(codes + 64), odd);
}

KERNEL float mean_of(const float *values, int64_t count) {
    __m256 eight = _mm256_loadu_ps(values);
    for (int64_t n = 8; n < count; n += 8) eight = _mm256_add_ps(eight, _mm256_loadu_ps(values + n));
    return sum_of(eight) / (float)count;
}

/* A block that starts at `column`, in `room` if it is the last one or has means: [columns] values, then their means. */
KERNEL const float *values_of(const float *input, int64_t columns, int64_t all, int64_t block, int64_t column,
                              float *room) {
    if (column + block <= columns) return input + column;
    for (int64_t n = 0; n < block; n++, column++)
        room[n] = column < columns ? input[column] : column < all ? mean_of(input + (column - columns) * block, block) : 0;
    return room;
}

/* One block to int8, and its scale and sum. */
KERNEL void round_block(const float *values, int64_t block, int8_t *codes, float *scale, float *sum) {
    const float largest = largest_magnitude(values, block);
    if (largest < SMALLEST || largest > FLT_MAX) {
        memset(codes, 0, (size_t)block);
        *scale = *sum = largest < SMALLEST ? 0 : NAN;
        return;
    }
    const __m256 factor = _mm256_set1_ps(127 / largest);
    int32_t total = 0;
    for (int64_t n = 0; n < block; n += 16) total += round_16(values + n, factor, codes + n);
    *scale = largest / 127;
    *sum = *scale * (float)total;
}

/* Where a grouped input's codes are, and its scales: every fourth byte of a cache line, and a float of one. */
typedef struct {
    int8_t *codes;
    float *scales, *sums;
} place_in_group;

KERNEL place_in_group find_place(const megrez_weights *weights, const megrez_inputs *rounded, int64_t index) {
    const int64_t group = index / MEGREZ_GROUPED, lane = index % MEGREZ_GROUPED;
    const int64_t at = group * weights->blocks * MEGREZ_GROUPED;
    return (place_in_group){rounded->codes + at * weights->block + lane * 4, rounded->scales + at + lane,
                            rounded->sums + at + lane};
}

/* Of each 128, or of a shorter block. */
KERNEL void evens_of_block_first(int8_t *codes, int64_t block) {
    for (int64_t n = 0; n + 128 <= block; n += 128) more_evens_first(codes + n);
    if (block >= 128) return;
    evens_first(codes); /* of 64, the rest of which may be anything */
    if (block < 64) memmove(codes + block / 2, codes + 32, (size_t)block / 2);
}

KERNEL void write_block(const place_in_group *to, int64_t n, int64_t block, const int8_t *codes, float scale, float sum) {
    int8_t *words = to->codes + n * block * MEGREZ_GROUPED;
    for (int64_t column = 0; column < block; column += 4) memcpy(words + column * MEGREZ_GROUPED, codes + column, 4);
    to->scales[n * MEGREZ_GROUPED] = scale, to->sums[n * MEGREZ_GROUPED] = sum;
}

KERNEL void round_grouped(const megrez_weights *weights, const float *input, int64_t columns,
                          const megrez_inputs *rounded, int64_t index) {
    static const int8_t zeros[256];
    const place_in_group to = find_place(weights, rounded, index);
    for (int64_t n = 0; n < weights->blocks; n++) {
        float room[256], scale, sum;
        int8_t codes[256] = {0};
        const int64_t block = weights->block;
        round_block(values_of(input, columns, weights->columns, block, n * block, room), block, codes, &scale, &sum);
        if (weights->bits == 4) evens_of_block_first(codes, block);
        write_block(&to, n, block, codes, scale, sum);
    }
    if (index + 1 < rounded->count) return;
    for (int64_t other = index + 1; other % MEGREZ_GROUPED; other++) {
        const place_in_group padding = find_place(weights, rounded, other);
        for (int64_t n = 0; n < weights->blocks; n++) write_block(&padding, n, weights->block, zeros, 0, 0);
    }
}

AVX2 void megrez_round(const megrez_weights *weights, const float *input, int64_t columns, const megrez_inputs *rounded,
                       int64_t index) {
    const int64_t blocks = weights->blocks, block = weights->block, count = rounded->count;
    float room[256];
    if (megrez_are_grouped(count)) {
        round_grouped(weights, input, columns, rounded, index);
        return;
    }
    for (int64_t n = 0; n < blocks; n++) {
        const float *values = values_of(input, columns, weights->columns, block, n * block, room);
        int8_t *codes = rounded->codes + megrez_place(weights->bits, count, index, n * block);
        const int64_t at = index * blocks + n;
        round_block(values, block, codes, rounded->scales + at, rounded->sums + at);
    }
    const int64_t group = megrez_group(), end = (blocks * block + group - 1) / group * group;
    for (int64_t n = blocks * block; n < end; n += 16)
        memset(rounded->codes + megrez_place(weights->bits, count, index, n), 0, 16);
    if (weights->bits != 4) return;
    for (int64_t n = 0; n < end; n += group) {
        int8_t *codes = rounded->codes + megrez_place(weights->bits, count, index, n);
        if (group == 64) evens_first(codes);
        else more_evens_first(codes);
    }
}

#else

void megrez_round(const megrez_weights *weights, const float *input, int64_t columns, const megrez_inputs *rounded,
                  int64_t index) {
    (void)weights, (void)input, (void)columns, (void)rounded, (void)index;
}

#endif
