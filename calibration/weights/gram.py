"""Gram matrices of projections' inputs, half of GPTQ's Hessians; knows no weight."""

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
# Tokens whose products are added in float32 before they join a float64 sum.
TOKENS_PER_SUM = 2048


def gram_matrix(x: Float32) -> Float64:
    """The mean of x x^T over x [tokens, K]: float64 [K, K]."""
    return cross_gram_matrix(x, x)


def cross_gram_matrix(y: Float32, x: Float32) -> Float64:
    """The mean of y x^T over the pairs of y [tokens, N] and x [tokens, K]: float64 [N, K]."""
    total = np.zeros((y.shape[1], x.shape[1]))
    for start in range(0, len(x), TOKENS_PER_SUM):
        part = slice(start, start + TOKENS_PER_SUM)
        total += y[part].T @ x[part]
    return total / len(x)
