"""Asymmetric calibration: weights that make up for the error in their quantised inputs; knows no layer and no format.

A projection of weights W reads X in the full-precision model and X~ in the quantised one. The weights sought bring
W' X~ near to W X and, where the product is added to the residual stream, to that stream's own error besides; a ridge
keeps them near to W:

    W' = argmin E ||W' x~ - (W x + residual_error)||^2 + ridge ||W' - W||^2

Source: Li et al., GPTAQ (arXiv 2504.02692), for the inputs. That paper corrects while it quantises; here W' is solved
for first and then quantised by GPTQ. The residual stream and so strong a ridge are from trying:
docs/benchmarks/cpu.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.weights.gram import cross_gram_matrix

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
# As a share of the Gram matrix's mean diagonal. A hundredth overfits the calibration data and does harm on other text.
RIDGE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FullPrecision:
    """What the full-precision model has at a projection group, token by token of the calibration data.

    inputs: [tokens, K]. residual_error: [tokens, N], the full-precision residual stream less the quantised one before
    the group's product is added; None where it is not added to the stream.
    """

    inputs: Float32
    residual_error: Float32 | None = None


def asymmetric_correction(
    reference: FullPrecision, quantized_inputs: Float32, gram: Float64
) -> Callable[[Float32], Float32]:
    """What makes W' [N, K] of W [N, K], for quantised inputs [tokens, K] with this Gram matrix [K, K].

    Where there is a residual error, W must be the whole group, whose N its columns are.
    """
    k = len(gram)
    ridge = max(RIDGE * float(np.trace(gram)) / k, np.finfo(np.float64).tiny)
    damped = gram + np.eye(k) * ridge

    def solve(cross: Float64) -> Float32:
        return np.linalg.solve(damped, cross.T).T.astype(np.float32)

    input_term = solve(cross_gram_matrix(reference.inputs, quantized_inputs) - gram)  # [K, K]
    residual_term = None  # [N, K]
    if reference.residual_error is not None:
        residual_term = solve(cross_gram_matrix(reference.residual_error, quantized_inputs))

    def correct(weight: Float32) -> Float32:
        corrected = weight + weight @ input_term
        return corrected if residual_term is None else corrected + residual_term

    return correct
