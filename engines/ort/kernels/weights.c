/* A matrix of MatMulNBits: its attributes and initializers, checked against each other. */
#include "weights.h"
#include "huge_pages.h"
#include "lines.h"

#include <stdio.h>
#include <string.h>

/* The data of an initializer, which must have this many elements; NULL if it is optional and absent. */
static ort_status *find_constant(
    const ort_api *api, const ort_kernel_info *info, size_t index, const char *called, bool optional, int64_t elements,
    const void **data
) {
    megrez_shape shape;
    ort_status *status = megrez_constant(api, info, index, &shape, data);
    if (status || (!*data && optional)) return status;
    const int64_t found = *data ? megrez_elements(&shape) : 0;
    if (found == elements) return NULL;
    char text[160];
    snprintf(text, sizeof text, "MatMulNBits: %s has %lld elements, by N, K, bits and block_size it would have %lld",
             called, (long long)found, (long long)elements);
    return megrez_refuse(api, text);
}

static ort_status *find_constants(
    const ort_api *api, const ort_kernel_info *info, const size_t inputs[4], megrez_weights *weights
) {
    const int64_t rows = weights->rows, blocks = weights->blocks, bits = weights->bits;
    const int64_t elements[] = {rows * blocks * (weights->block * bits / 8), rows * blocks,
                                rows * ((blocks * bits + 7) / 8), rows};
    static const char *const called[] = {"B", "scales", "zero_points", "bias"};
    const void *data[4];
    for (int n = 0; n < 4; n++) {
        ort_status *status = find_constant(api, info, inputs[n], called[n], n >= 2, elements[n], data + n);
        if (status) return status;
    }
    weights->codes = data[0], weights->scales = data[1], weights->zero_points = data[2], weights->bias = data[3];
    return NULL;
}

/* Bytes from which on a matrix is worth a copy. */
enum { WORTH_A_COPY = 1 << 16 };

/* Codes, scales and zero points one after the other; left where they are if there is no memory. */
static void copy_to_huge_pages(megrez_weights *weights) {
    const size_t rows = (size_t)weights->rows, blocks = (size_t)weights->blocks, bits = (size_t)weights->bits;
    const size_t codes = rows * blocks * (size_t)weights->block * bits / 8, scales = rows * blocks * sizeof(float);
    const size_t points = weights->zero_points ? rows * ((blocks * bits + 7) / 8) : 0;
    if (codes < WORTH_A_COPY) return;
    char *room = megrez_take_huge_pages(megrez_on_lines(codes) + megrez_on_lines(scales) + points, &weights->copies);
    if (!room) return;
    memcpy(room, weights->codes, codes);
    megrez_forget_source(weights->codes, codes);
    weights->codes = (uint8_t *)room, room += megrez_on_lines(codes);
    weights->scales = memcpy(room, weights->scales, scales), room += megrez_on_lines(scales);
    if (points) weights->zero_points = memcpy(room, weights->zero_points, points);
}

void megrez_release_weights(megrez_weights *weights) {
    megrez_release_huge_pages(weights->copies);
    weights->copies = NULL;
}

ort_status *megrez_read_weights(
    const ort_api *api, const ort_kernel_info *info, const char *prefix, const size_t inputs[4], megrez_weights *weights
) {
    const struct {
        const char *name;
        int64_t *value;
    } attributes[] = {
        {"N", &weights->rows}, {"K", &weights->columns}, {"block_size", &weights->block}, {"bits", &weights->bits}
    };
    enum { BITS = 3 }; /* the only optional one */
    weights->bits = 4;
    for (int n = 0; n < 4; n++) {
        char name[64];
        snprintf(name, sizeof name, "%s%s", prefix, attributes[n].name);
        ort_status *status = n == BITS ? NULL : ort_attribute(api)(info, name, attributes[n].value);
        if (status) return status;
        if (n == BITS) megrez_optional(api, info, name, attributes[n].value);
    }
    if (!megrez_takes(weights))
        return megrez_decline(api, "MatMulNBits: 4 or 8 bits, blocks of 16 to 256 are taken");
    if (weights->rows < 1 || weights->rows > INT32_MAX || weights->columns < 1 || weights->columns > INT32_MAX)
        return megrez_refuse(api, "MatMulNBits: N and K are not between 1 and 2^31 - 1");
    weights->blocks = (weights->columns + weights->block - 1) / weights->block;
    ort_status *status = find_constants(api, info, inputs, weights);
    if (!status && megrez_wants_huge_pages()) copy_to_huge_pages(weights);
    return status;
}
