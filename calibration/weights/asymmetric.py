"""Asymmetric calibration: weights corrected for the error of their quantised inputs; knows no layer and no format.

A projection W reads X in the full-precision model and X~ in the quantised one. The corrected weights W' approximate W X
from X~ and, where the product is added to the residual stream, also cancel that stream's error; a ridge keeps them
close to W:

    W' = argmin E ||W' x~ - (W x + residual_error)||^2 + ridge ||W' - W||^2

Source: Li et al., GPTAQ (arXiv 2504.02692), for the inputs. The paper corrects while it quantises; here W' is solved
for first and then quantised by GPTQ. The residual term and the size of the ridge are empirical:
docs/benchmarks/cpu.md.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.weights.cholesky import Cholesky, cholesky
from megrez.calibration.weights.gram import cross_gram_matrix, damped, mean_diagonal

Float32 = NDArray[np.float32]
# Relative to the Gram matrix's mean diagonal. A hundredth overfits the calibration data and is worse on other text.
RIDGE = 1.0
# Rows of a matrix that are taken at a time: an LM head has as many as the vocabulary.
ROWS_PER_PRODUCT = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class FullPrecision:
    """The full-precision model's values at a projection group, for each token of the calibration data.

    inputs: [tokens, K]. residual_error: [tokens, N], the full-precision residual stream minus the quantised one
    before the group's product is added; None where it is not added to the stream.
    """

    inputs: Float32
    residual_error: Float32 | None = None


@dataclass(frozen=True, kw_only=True)
class AsymmetricCorrection:
    """For quantised inputs [tokens, K] with the Gram matrix `gram` [K, K].

    W' - W solves a system of K equations, or equivalently one of as many equations as there are tokens; and its
    right-hand side comes from the errors of the outputs [tokens, N] or, without a residual error, of the inputs.
    Whichever is the least work is used.
    """

    reference: FullPrecision
    inputs: Float32
    gram: Float32

    def __call__(self, weight: Float32, *, overwrite: bool = False) -> Float32:
        """W' [N, K] of W [N, K]; where there is a residual error, W must be the whole group.

        overwrite: W may be overwritten, which saves the memory of a large one.
        """
        residual_error = self.reference.residual_error
        if residual_error is None and len(weight) > weight.shape[1]:
            corrected = weight if overwrite else np.empty_like(weight)
            for start in range(0, len(weight), ROWS_PER_PRODUCT):
                part = slice(start, start + ROWS_PER_PRODUCT)
                np.add(weight[part], weight[part] @ self._input_term, out=corrected[part])
            return corrected
        errors = self._input_errors @ weight.T  # [tokens, N]
        if residual_error is not None:
            errors += residual_error
        if len(errors) >= weight.shape[1]:
            return weight + self._by_input.solve(cross_gram_matrix(self.inputs, errors)).T
        return weight + cross_gram_matrix(self._by_token.solve(errors), self.inputs)

    @cached_property
    def _input_errors(self) -> Float32:
        return self.reference.inputs - self.inputs

    @cached_property
    def _input_term(self) -> Float32:
        """[K, K]: W' = W + W @ this."""
        return self._by_input.solve(cross_gram_matrix(self.inputs, self._input_errors)).T

    @cached_property
    def _by_input(self) -> Cholesky:
        """Of the Gram matrix with its ridge, [K, K]."""
        return cholesky(damped(self.gram, RIDGE * mean_diagonal(self.gram)))

    @cached_property
    def _by_token(self) -> Cholesky:
        """Of the tokens' products with each other and the same ridge, [tokens, tokens]."""
        products = self.inputs @ self.inputs.T
        products /= np.float32(len(self.inputs))
        return cholesky(damped(products, RIDGE * mean_diagonal(self.gram)))
