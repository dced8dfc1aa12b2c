"""Gram matrices of projections' inputs, half of GPTQ's Hessians; knows no weight."""

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
# Columns of a Gram matrix computed at once: what lies above its diagonal is mirrored.
COLUMNS_PER_PRODUCT = 1024
TINY = float(np.finfo(np.float32).tiny)


def gram_matrix(x: Float32) -> Float32:
    """The mean of x x^T over x [tokens, K]: [K, K], symmetric to the bit."""
    k = x.shape[1]
    gram = np.empty((k, k), np.float32)
    for start in range(0, k, COLUMNS_PER_PRODUCT):
        part = slice(start, start + COLUMNS_PER_PRODUCT)
        product = x[:, start:].T @ x[:, part]
        product /= np.float32(len(x))
        gram[start:, part] = product
        gram[part, start:] = product.T
    return gram


def cross_gram_matrix(y: Float32, x: Float32) -> Float32:
    """The mean of y x^T over the pairs of y [tokens, N] and x [tokens, K]: [N, K]."""
    product: Float32 = y.T @ x
    product /= np.float32(len(x))
    return product


def mean_diagonal(gram: Float32) -> float:
    return float(np.diag(gram).mean(dtype=np.float64))


def damped(gram: Float32, damping: float) -> Float32:
    """A copy of `gram` with `damping`, or the least positive number, added to its diagonal."""
    result = gram.copy()
    result.flat[:: len(gram) + 1] += np.float32(max(damping, TINY))
    return result
