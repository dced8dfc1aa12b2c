"""Ranges for RTN, from the weights alone: a few clipping ratios per block, each with a fitted scale; knows no text."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.weights.ranges import (
    SMALLEST_SCALE,
    BestGrid,
    Grid,
    extremes,
    nearest_steps,
    positive_scale,
)
from megrez.engines.weight_formats import WeightFormat

Float32 = NDArray[np.float32]
# Clipping ratios tried with fitted scales, relative to the block's range.
FITTED_RATIOS = {4: (1.0, 0.96, 0.92), 8: (128 / 127, 1.0, 0.99)}


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedSearch:
    """Of a few clipping ratios the one with the least squared error, and then of its zero point and the next two.

    Each candidate's scale is fitted to its codes by least squares. A symmetric range maps the largest magnitude to the
    most negative code, so a scale may be negative, and zero for a block of zeros; with `positive`, every scale is
    positive. Only for integer formats whose scales are not quantised.
    """

    positive: bool

    def choose(self, x: Float32, weight_format: WeightFormat, unit: np.float32 | None) -> Grid:
        assert not weight_format.floating and not weight_format.nested
        # [block, rows * blocks]: reductions over a block run along rows of memory, many blocks at once.
        columns = np.ascontiguousarray(x.reshape(-1, x.shape[2]).T)
        bits, best = weight_format.bits, BestGrid(columns.shape[1:])
        if weight_format.symmetric:
            _fit(columns, bits, _symmetric_for_fit(columns, bits, self.positive), best)
        else:
            _fit(columns, bits, _asymmetric_for_fit(columns, bits), best)
            _fit(columns, bits, best.neighbours(bits), best)
        scale = positive_scale(best.scale) if self.positive else best.scale
        return scale.reshape(x.shape[:2]), best.zero.reshape(x.shape[:2])

    def divide(self, x: Float32, scale: Float32) -> Float32:
        return x * _reciprocal(scale)[..., None]


def _symmetric_for_fit(x: Float32, bits: int, positive: bool) -> Iterator[Grid]:
    """x [block, blocks]; scales and zero points [blocks]."""
    half = np.float32(2 ** (bits - 1))
    low, high = x.min(axis=0), x.max(axis=0)
    signed, unsigned = np.where(high > -low, high, low) / -half, np.maximum(high / (half - 1), low / -half)
    scale = unsigned if positive else signed
    for ratio in FITTED_RATIOS[bits]:
        yield scale * np.float32(ratio), np.full_like(scale, half)


def _asymmetric_for_fit(x: Float32, bits: int) -> Iterator[Grid]:
    """x [block, blocks]; scales and zero points [blocks], the zero points the full range's."""
    low, high = extremes(x, axis=0)
    scale = (high - low) / np.float32(2**bits - 1)
    zero = np.rint(-low * _reciprocal(scale))
    for ratio in FITTED_RATIOS[bits]:
        yield scale * np.float32(ratio), zero


def _fit(x: Float32, bits: int, grids: Iterable[Grid], best: BestGrid) -> None:
    """Fit the scale of each grid to x [block, blocks] by least squares, and keep the best."""
    for scale, zero in grids:
        steps = nearest_steps(x * _reciprocal(scale), zero, bits)
        power = np.einsum("kb,kb->b", steps, steps)
        fitted = np.divide(np.einsum("kb,kb->b", x, steps), power, out=np.zeros_like(power), where=power > 0)
        steps *= fitted
        steps -= x
        best.keep(fitted, zero, np.einsum("kb,kb->b", steps, steps))


def _reciprocal(scale: Float32) -> Float32:
    """1 / scale, and 0 for scales that are too small: their blocks are quantised to zeros."""
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=np.abs(scale) > SMALLEST_SCALE)
