"""Asymmetric calibration: weights corrected for the error of their quantised inputs; knows no layer and no format.

A projection W reads X in the full-precision model and X~ in the quantised one. The corrected weights W' approximate
W X, or where the product is added to the residual stream what brings that stream to the full-precision model's, from
X~; a ridge keeps them close to W:

    W' = argmin E ||W' x~ - y||^2 + ridge ||W' - W||^2        with y = W x, or W x + the residual stream's error

Source: Li et al., GPTAQ (arXiv 2504.02692), for the inputs. The paper corrects while it quantises; here W' is solved
for first and then quantised by GPTQ. The residual term and the size of the ridge are empirical:
docs/benchmarks/cpu.md.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.parallel import multiply
from megrez.calibration.weights.cholesky import Cholesky, cholesky
from megrez.calibration.weights.gram import cross_gram_matrix, damped, mean_diagonal

Float32 = NDArray[np.float32]
# Relative to the Gram matrix's mean diagonal. A hundredth overfits the calibration data and is worse on other text.
RIDGE = 1.0
# Rows of a matrix that are taken at a time: an LM head has as many as the vocabulary.
ROWS_PER_PRODUCT = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class FullPrecision:
    """The full-precision model's values at a projection group, for each token of the calibration data; one of the two.

    inputs: [tokens, K]. outputs: [tokens, N], what is to be added to the quantised residual stream, less the bias: the
    full-precision stream after the addition minus the quantised one before it.
    """

    inputs: Float32 | None = None
    outputs: Float32 | None = None


@dataclass(frozen=True, kw_only=True)
class AsymmetricCorrection:
    """For quantised inputs [tokens, K] with the Gram matrix `gram` [K, K].

    W' - W solves a system of K equations, or equivalently one of as many equations as there are tokens, which is less
    work for fewer tokens.
    """

    reference: FullPrecision
    inputs: Float32
    gram: Float32

    def __call__(self, weight: Float32, *, overwrite: bool = False) -> Float32:
        """W' [N, K] of W [N, K]; where the reference has outputs, W must be the whole group.

        overwrite: W may be overwritten, which saves the memory of a large one.
        """
        outputs = self.reference.outputs
        if outputs is None:
            corrected = weight if overwrite else np.empty_like(weight)
            for start in range(0, len(weight), ROWS_PER_PRODUCT):
                part = slice(start, start + ROWS_PER_PRODUCT)
                np.add(weight[part], multiply(weight[part], self._input_term), out=corrected[part])
            return corrected
        if len(self.inputs) < weight.shape[1]:
            errors = outputs - multiply(self.inputs, weight.T)
            return weight + cross_gram_matrix(self._by_token.solve(errors), self.inputs)
        # The mean of errors x~^T, without the errors [tokens, N].
        errors = cross_gram_matrix(self.inputs, outputs)
        errors -= multiply(self.gram, weight.T)
        return weight + self._by_input.solve(errors).T

    @cached_property
    def _input_term(self) -> Float32:
        """[K, K]: W' = W + W @ this."""
        assert self.reference.inputs is not None
        errors = self.reference.inputs - self.inputs
        if len(errors) < errors.shape[1]:
            return cross_gram_matrix(self._by_token.solve(errors), self.inputs)
        return self._by_input.solve(cross_gram_matrix(self.inputs, errors)).T

    @cached_property
    def _by_input(self) -> Cholesky:
        """Of the Gram matrix with its ridge, [K, K]."""
        return cholesky(damped(self.gram, RIDGE * mean_diagonal(self.gram)))

    @cached_property
    def _by_token(self) -> Cholesky:
        """Of the tokens' products with each other and the same ridge, [tokens, tokens]."""
        products = multiply(self.inputs, self.inputs.T)
        products /= np.float32(len(self.inputs))
        return cholesky(damped(products, RIDGE * mean_diagonal(self.gram)))
