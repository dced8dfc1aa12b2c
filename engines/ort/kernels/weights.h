/* Reads the quantised matrices of MatMulNBits and of the operators that contain it. */
#ifndef MEGREZ_WEIGHTS_H
#define MEGREZ_WEIGHTS_H

#include "operator.h"
#include "products.h"

/* By the attributes N, K, bits and block_size after `prefix`, and the inputs for codes, scales, zero points and bias,
 * which are initializers of the graph and stay where they are, unless huge pages are wanted; the last two may be absent.
 */
ort_status *megrez_read_weights(
    const ort_api *api, const ort_kernel_info *info, const char *prefix, const size_t inputs[4], megrez_weights *weights
);
/* Releases copies in huge pages. */
void megrez_release_weights(megrez_weights *weights);

#endif
