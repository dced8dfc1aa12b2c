"""Moments of what a calibration text makes a projection read; knows no weight."""

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
# Tokens whose products are added in float32 before they join a float64 sum.
CHUNK = 2048


def second_moments(x: Float32) -> Float64:
    """The mean of x x^T over x [tokens, K]: float64 [K, K]."""
    return cross_moments(x, x)


def cross_moments(y: Float32, x: Float32) -> Float64:
    """The mean of y x^T over the pairs of y [tokens, N] and x [tokens, K]: float64 [N, K]."""
    total = np.zeros((y.shape[1], x.shape[1]))
    for start in range(0, len(x), CHUNK):
        part = slice(start, start + CHUNK)
        total += y[part].T @ x[part]
    return total / len(x)
