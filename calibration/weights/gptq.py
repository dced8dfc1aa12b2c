"""GPTQ: quantise column by column, feeding each column's error back into later ones; knows no text.

Source: Frantar et al., GPTQ (arXiv 2210.17323), in the form that Chee et al., QuIP (arXiv 2307.13304), prove equal to
it (LDLQ): with the Hessian H = (A + I) D (A + I)^T, A strictly upper triangular, column k is quantised as
w_k + sum_j<k A_jk (w_j - q_j). It needs one Cholesky factor and no inverse.
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.data_types import FLOAT_TYPES
from megrez.calibration.parallel import in_parts
from megrez.calibration.weights.blocks import BlockQuantized
from megrez.calibration.weights.cholesky import cholesky
from megrez.calibration.weights.gram import add_damping, mean_diagonal

Float32 = NDArray[np.float32]
# Added to the Hessian's diagonal, relative to its median times the inputs per token: the fewer tokens there are, the
# less they say about the directions in which inputs vary least. The mean would be that of a few outlier channels.
DAMPING = 1.0
# Relative to the diagonal's mean: what float32 needs at least.
LEAST_DAMPING = 0.001
# Rows of the Hessian that a thread moves at a time.
HESSIAN_ROWS = 256
# GPTQ's lazy batches: columns quantised before their errors are fed back to all later ones, and, within a batch, before
# they are fed back to the rest of it; rows quantised at a time, so that a batch's errors stay in the cache.
BATCH_COLUMNS, NEAR_COLUMNS, BATCH_ROWS = 128, 8, 2048


@dataclass(frozen=True)
class Gptq:
    """For inputs with the Gram matrix `gram` [K, K], the mean of x x^T over that many tokens of calibration data."""

    gram: Float32
    tokens: int

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """Act-order: the largest errors are fed back to the most columns."""
        return np.argsort(-np.diag(self.gram), kind="stable")

    @cached_property
    def feedback(self) -> Float32:
        """A^T of H = (A + I) D (A + I)^T in act-order, strictly lower triangular [K, K]."""
        size = len(self.gram)
        last_first = self.order[::-1]  # a Cholesky factor from the last row and column up
        hessian, feedback = np.empty_like(self.gram), np.empty_like(self.gram)

        def gather(rows: slice) -> None:
            hessian[rows] = self.gram[last_first[rows]][:, last_first]

        in_parts(size, HESSIAN_ROWS, gather)
        add_damping(hessian, self._damping)
        lower = cholesky(hessian).factor
        diagonal = np.diag(lower).copy()

        def transpose(rows: slice) -> None:
            columns = slice(size - rows.stop, size - rows.start)
            feedback[rows] = (lower[::-1, columns] / diagonal[columns]).T[::-1]

        in_parts(size, HESSIAN_ROWS, transpose)
        np.fill_diagonal(feedback, 0)
        return feedback

    @property
    def _damping(self) -> float:
        diagonal = np.diag(self.gram)
        median = float(np.median(diagonal[diagonal > 0])) if diagonal.any() else 0.0
        return max(DAMPING * len(self.gram) / self.tokens * median, LEAST_DAMPING * mean_diagonal(self.gram))

    def quantize(self, weight: Float32, grid: BlockQuantized) -> BlockQuantized:
        """New codes for `weight` [N, K] with the scales and zero points of `grid`.

        Minimises the mean of ||(w - q) x||^2, where rounding to nearest minimises ||w - q||^2.
        """
        codes = np.empty(weight.shape, np.uint8)
        order, original, feedback = self.order, np.argsort(self.order), self.feedback

        def quantize_rows(part: slice) -> None:
            columns = np.ascontiguousarray(weight[part].T)[order]  # [K, rows]
            codes[part] = _codes(columns, feedback, _Columns(grid, part, order))[original].T

        in_parts(len(weight), BATCH_ROWS, quantize_rows)
        return dataclasses.replace(grid, codes=codes)


class _Columns:
    """The grid of some rows, column by column in act-order."""

    def __init__(self, grid: BlockQuantized, rows: slice, order: NDArray[np.intp]) -> None:
        self._block = order // grid.block
        self._scales = np.ascontiguousarray(grid.scales[rows].T)  # [blocks, rows]
        self._reciprocals = np.divide(
            np.float32(1), self._scales, out=np.zeros_like(self._scales), where=self._scales != 0
        )
        middle = 0.0 if grid.floating else 2.0 ** (grid.bits - 1)
        zero_points = grid.zero_points
        self._zeros = (
            np.full_like(self._scales, middle)
            if zero_points is None
            else np.ascontiguousarray(zero_points[rows].T, dtype=np.float32)
        )
        self._top = np.float32(2**grid.bits - 1)
        self._float_type = FLOAT_TYPES[grid.bits] if grid.floating else None

    def quantize(self, column: int, values: Float32, codes: NDArray[np.uint8]) -> Float32:
        """`values` [rows] quantised, in their memory; `codes` receives the nearest codes."""
        block = self._block[column]
        scale, zero = self._scales[block], self._zeros[block]
        values *= self._reciprocals[block]
        if self._float_type is not None:
            codes[:] = self._float_type.encode(values)
            np.multiply(self._float_type.decode(codes), scale, out=values)
            return values
        values += zero
        np.rint(values, out=values)
        np.maximum(values, 0, out=values)
        np.minimum(values, self._top, out=values)
        codes[:] = values
        values -= zero
        values *= scale
        return values


def _codes(columns: Float32, feedback: Float32, grid: _Columns) -> NDArray[np.uint8]:
    """Codes [K, rows] of the matrix's columns [K, rows]."""
    codes = np.empty(columns.shape, np.uint8)
    errors = np.empty_like(columns)
    for start in range(0, len(columns), BATCH_COLUMNS):
        stop = min(start + BATCH_COLUMNS, len(columns))
        values = columns[start:stop] + feedback[start:stop, :start] @ errors[:start]
        for near in range(start, stop, NEAR_COLUMNS):
            end = min(near + NEAR_COLUMNS, stop)
            for k in range(near, end):
                value = values[k - start]
                value += feedback[k, near:k] @ errors[near:k]
                np.subtract(columns[k], grid.quantize(k, value, codes[k]), out=errors[k])
            values[end - start :] += feedback[end:stop, near:end] @ errors[near:end]
    return codes
