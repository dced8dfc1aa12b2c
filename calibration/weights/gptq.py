"""Rounding that makes up for itself: each column's error is undone by the columns rounded after it; knows no text.

Source: Frantar et al., GPTQ (2023), in the form that Chee et al., QuIP (2023), prove equal to it (LDLQ): with second
moments H = (A + I) D (A + I)^T, A strictly upper triangular, column k is rounded as w_k + sum_j<k A_jk (w_j - q_j). It
needs one Cholesky factor and no inverse.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.data_types import FLOATS
from megrez.calibration.weights.blocks import BlockQuantized

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
# Of the moments' mean, added to all: a direction that the text never took must not be trusted.
DAMPING = 0.01
# Columns rounded one after another before the rest of the rows hears of it; rows handled at a time.
COLUMNS, ROWS = 64, 8192


def quantize_gptq(weight: Float32, grid: BlockQuantized, moments: Float64) -> BlockQuantized:
    """New codes for `weight` [N, K] on the scales and zero points of `grid`.

    moments: float64 [K, K], the mean of x x^T over the inputs x that the matrix will meet, [K] each. They make
    ||(w - q) x||^2 small on average, where rounding to nearest makes ||w - q||^2 small.
    """
    order = np.argsort(-np.diag(moments), kind="stable")  # the loudest first: most columns are left to make up for them
    feedback = _feedback(moments[np.ix_(order, order)])
    codes = np.empty(weight.shape, np.uint8)
    for start in range(0, len(weight), ROWS):
        part = slice(start, start + ROWS)
        columns = np.ascontiguousarray(weight[part].T[order])  # [K, rows]
        codes[part] = _unordered(_codes(columns, feedback, _Columns(grid, part, order)), order).T
    return dataclasses.replace(grid, codes=codes)


def _feedback(moments: Float64) -> Float32:
    """A of H = (A + I) D (A + I)^T, [K, K]: a Cholesky factor from the last row and column up."""
    k = len(moments)
    damped = moments + np.eye(k) * max(DAMPING * float(np.trace(moments)) / k, np.finfo(np.float64).tiny)
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    return np.triu(upper / np.diag(upper), 1).astype(np.float32)


class _Columns:
    """The grid of some rows, column by column in the order of rounding."""

    def __init__(self, grid: BlockQuantized, rows: slice, order: NDArray[np.intp]) -> None:
        self._block = order // grid.block
        self._scales = np.ascontiguousarray(grid.scales[rows].T)  # [blocks, rows]
        middle = 0.0 if grid.floating else 2.0 ** (grid.bits - 1)
        zeros = grid.zero_points
        self._zeros = np.full_like(self._scales, middle) if zeros is None else zeros[rows].T.astype(np.float32)
        self._top, self._float = np.float32(2**grid.bits - 1), FLOATS[grid.bits] if grid.floating else None

    def round(self, column: int, values: Float32) -> tuple[NDArray[np.uint8], Float32]:
        """Codes of `values` [rows] and what they stand for."""
        block = self._block[column]
        scale, zero = self._scales[block], self._zeros[block]
        steps = np.divide(values, scale, out=np.zeros_like(values), where=scale != 0)
        if self._float is not None:
            numbers = self._float.encode(steps)
            return numbers, self._float.decode(numbers) * scale
        codes = np.clip(np.rint(steps + zero), 0, self._top)
        return codes.astype(np.uint8), (codes - zero) * scale


def _codes(columns: Float32, feedback: Float32, grid: _Columns) -> NDArray[np.uint8]:
    """Codes [K, rows] of the matrix's columns [K, rows]."""
    codes = np.empty(columns.shape, np.uint8)
    errors = np.empty_like(columns)
    for start in range(0, len(columns), COLUMNS):
        stop = min(start + COLUMNS, len(columns))
        wanted = columns[start:stop] + feedback[:start, start:stop].T @ errors[:start]
        for k in range(start, stop):
            value = wanted[k - start] + feedback[start:k, k] @ errors[start:k]
            codes[k], rounded = grid.round(k, value)
            errors[k] = columns[k] - rounded
    return codes


def _unordered(codes: NDArray[np.uint8], order: NDArray[np.intp]) -> NDArray[np.uint8]:
    back = np.empty_like(codes)
    back[order] = codes
    return back
