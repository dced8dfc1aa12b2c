"""Gram matrices of projections' inputs, half of GPTQ's Hessians; knows no weight."""

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.parallel import in_parts, multiply

Float32 = NDArray[np.float32]
# Columns of a Gram matrix computed at once: what lies above its diagonal is mirrored.
COLUMNS_PER_PRODUCT = 256
TINY = float(np.finfo(np.float32).tiny)


def gram_matrix(x: Float32) -> Float32:
    """The mean of x x^T over x [tokens, K]: [K, K], symmetric to the bit."""
    k = x.shape[1]
    gram = np.empty((k, k), np.float32)

    def compute(part: slice) -> None:
        gram[part, part] = x[:, part].T @ x[:, part]
        gram[part, : part.start] = x[:, part].T @ x[:, : part.start]
        gram[part, : part.stop] /= np.float32(len(x))
        gram[: part.start, part] = gram[part, : part.start].T

    in_parts(k, COLUMNS_PER_PRODUCT, compute)
    return gram


def mean_squares(x: Float32) -> Float32:
    """The Gram matrix's diagonal, [K]."""
    squares: Float32 = np.einsum("tk,tk->k", x, x) / np.float32(len(x))
    return squares


def cross_gram_matrix(y: Float32, x: Float32) -> Float32:
    """The mean of y x^T over the pairs of y [tokens, N] and x [tokens, K]: [N, K]."""
    product = multiply(y.T, x)
    product /= np.float32(len(x))
    return product


def mean_diagonal(gram: Float32) -> float:
    return float(np.diag(gram).mean(dtype=np.float64))


def add_damping(gram: Float32, damping: float) -> None:
    """Add `damping`, or the least positive number, to the diagonal."""
    gram.flat[:: len(gram) + 1] += np.float32(max(damping, TINY))


def damped(gram: Float32, damping: float) -> Float32:
    """A copy of `gram` with add_damping."""
    result = gram.copy()
    add_damping(result, damping)
    return result
