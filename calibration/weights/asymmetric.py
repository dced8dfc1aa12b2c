"""Asymmetric calibration: weights corrected for the error of their quantised inputs; knows no layer and no format.

A projection W reads X in the full-precision model and X~ in the quantised one. The corrected weights W' approximate W X
from X~ and, where the product is added to the residual stream, also cancel that stream's error; a ridge keeps them
close to W:

    W' = argmin E ||W' x~ - (W x + residual_error)||^2 + ridge ||W' - W||^2

Source: Li et al., GPTAQ (arXiv 2504.02692), for the inputs. The paper corrects while it quantises; here W' is solved
for first and then quantised by GPTQ. The residual term and the size of the ridge are empirical:
docs/benchmarks/cpu.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.weights.gram import cross_gram_matrix

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
# Relative to the Gram matrix's mean diagonal. A hundredth overfits the calibration data and is worse on other text.
RIDGE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FullPrecision:
    """The full-precision model's values at a projection group, for each token of the calibration data.

    inputs: [tokens, K]. residual_error: [tokens, N], the full-precision residual stream minus the quantised one
    before the group's product is added; None where it is not added to the stream.
    """

    inputs: Float32
    residual_error: Float32 | None = None


def asymmetric_correction(
    reference: FullPrecision, quantized_inputs: Float32, gram: Float64
) -> Callable[[Float32], Float32]:
    """The function from W [N, K] to W' [N, K], for quantised inputs [tokens, K] with this Gram matrix [K, K].

    Where there is a residual error, W must be the whole group, with the same N.
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
