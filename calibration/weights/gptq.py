"""GPTQ: quantise column by column, feeding each column's error back into later ones; knows no text.

Source: Frantar et al., GPTQ (arXiv 2210.17323), in the form that Chee et al., QuIP (arXiv 2307.13304), prove equal to
it (LDLQ): with the Hessian H = (A + I) D (A + I)^T, A strictly upper triangular, column k is quantised as
w_k + sum_j<k A_jk (w_j - q_j). It needs one Cholesky factor and no inverse.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.data_types import FLOAT_TYPES
from megrez.calibration.weights.blocks import BlockQuantized

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
# Added to the Hessian's diagonal, relative to its mean: without it the Hessian may be singular.
DAMPING = 0.01
# GPTQ's lazy batches: columns quantised before their errors are fed back to all others; rows quantised at a time.
BATCH_COLUMNS, BATCH_ROWS = 64, 8192


def quantize_gptq(weight: Float32, grid: BlockQuantized, gram: Float64) -> BlockQuantized:
    """New codes for `weight` [N, K] with the scales and zero points of `grid`, in act-order.

    gram: float64 [K, K], the mean of x x^T over the inputs x [K] of the calibration data. Minimises the mean of
    ||(w - q) x||^2 over them, where rounding to nearest minimises ||w - q||^2.
    """
    order = np.argsort(-np.diag(gram), kind="stable")  # act-order: the largest errors are fed back to the most columns
    feedback = _feedback(gram[np.ix_(order, order)])
    codes = np.empty(weight.shape, np.uint8)
    for start in range(0, len(weight), BATCH_ROWS):
        part = slice(start, start + BATCH_ROWS)
        columns = np.ascontiguousarray(weight[part].T[order])  # [K, rows]
        codes[part] = _unordered(_codes(columns, feedback, _Columns(grid, part, order)), order).T
    return dataclasses.replace(grid, codes=codes)


def _feedback(gram: Float64) -> Float32:
    """A of H = (A + I) D (A + I)^T, [K, K]: a Cholesky factor from the last row and column up."""
    k = len(gram)
    damped = gram + np.eye(k) * max(DAMPING * float(np.trace(gram)) / k, np.finfo(np.float64).tiny)
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    return np.triu(upper / np.diag(upper), 1).astype(np.float32)


class _Columns:
    """The grid of some rows, column by column in act-order."""

    def __init__(self, grid: BlockQuantized, rows: slice, order: NDArray[np.intp]) -> None:
        self._block = order // grid.block
        self._scales = np.ascontiguousarray(grid.scales[rows].T)  # [blocks, rows]
        middle = 0.0 if grid.floating else 2.0 ** (grid.bits - 1)
        zero_points = grid.zero_points
        self._zeros = (
            np.full_like(self._scales, middle) if zero_points is None else zero_points[rows].T.astype(np.float32)
        )
        self._top = np.float32(2**grid.bits - 1)
        self._float_type = FLOAT_TYPES[grid.bits] if grid.floating else None

    def quantize(self, column: int, values: Float32) -> tuple[NDArray[np.uint8], Float32]:
        """The nearest codes to `values` [rows], and these dequantised."""
        block = self._block[column]
        scale, zero = self._scales[block], self._zeros[block]
        steps = np.divide(values, scale, out=np.zeros_like(values), where=scale != 0)
        if self._float_type is not None:
            patterns = self._float_type.encode(steps)
            return patterns, self._float_type.decode(patterns) * scale
        codes = np.clip(np.rint(steps + zero), 0, self._top)
        return codes.astype(np.uint8), (codes - zero) * scale


def _codes(columns: Float32, feedback: Float32, grid: _Columns) -> NDArray[np.uint8]:
    """Codes [K, rows] of the matrix's columns [K, rows]."""
    codes = np.empty(columns.shape, np.uint8)
    errors = np.empty_like(columns)
    for start in range(0, len(columns), BATCH_COLUMNS):
        stop = min(start + BATCH_COLUMNS, len(columns))
        compensated = columns[start:stop] + feedback[:start, start:stop].T @ errors[:start]
        for k in range(start, stop):
            value = compensated[k - start] + feedback[start:k, k] @ errors[start:k]
            codes[k], quantized = grid.quantize(k, value)
            errors[k] = columns[k] - quantized
    return codes


def _unordered(codes: NDArray[np.uint8], order: NDArray[np.intp]) -> NDArray[np.uint8]:
    original = np.empty_like(codes)
    original[order] = codes
    return original
