"""The range of each block of a matrix: the scale and zero point it is quantised with; knows no text and no layout.

Scales and zero points are float32 [rows, blocks] throughout, the blocks they belong to float32 [rows, blocks, block].
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.data_types import FLOAT_TYPES
from megrez.engines.weight_formats import WeightFormat

Float32 = NDArray[np.float32]
Grid = tuple[Float32, Float32]  # scales, zero points
# Below this a scale's reciprocal would overflow: the block is quantised to zeros.
SMALLEST_SCALE = np.float32(1e-30)
# Clipping ratios tried by the weighted search, by the bits of integers.
SEARCH_RATIOS = {4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7), 8: (1.0, 0.95, 0.9, 0.85, 0.8)}
# E4M3's values repeat at every power of two: ratios within one octave are enough.
E4M3_RATIOS = tuple(2.0 ** (-step / 8) for step in range(8))
# NVFP4's scales are E4M3 values: neighbours of the full range, also above it, because 4 and 6 are far apart.
NVFP4_RATIOS = (1.0, 1.125, 1.25, 1.375, 1.5, 0.9, 0.8)
LARGEST_NVFP4_RATIO = max(NVFP4_RATIOS)


class RangePolicy(Protocol):
    """Chooses a range for every block."""

    def choose(self, x: Float32, weight_format: WeightFormat, unit: np.float32 | None) -> Grid:
        """Scales and zero points for x [rows, blocks, block]. unit: the tensor scale of NVFP4, else None."""
        ...

    def divide(self, x: Float32, scale: Float32) -> Float32:
        """x / scale, [rows, blocks, block], which is then rounded to codes."""
        ...


class AbsMax:
    """The range without clipping: to the largest magnitude, or with zero points from the smallest to the largest."""

    def choose(self, x: Float32, weight_format: WeightFormat, unit: np.float32 | None) -> Grid:
        return next(_clipped(x, weight_format, unit))

    def divide(self, x: Float32, scale: Float32) -> Float32:
        return x / scale[..., None]


@dataclass(frozen=True, slots=True)
class WeightedSearch:
    """Clipping-ratio search: the range with the least squared error, each column's weighted by its importance.

    Of the ratios the best, with the zero point nearest to zero's place in the range; then that zero point's neighbours.
    importance: float32 [K], the mean square of each input on the calibration data. Scales are positive.
    """

    importance: Float32

    def choose(self, x: Float32, weight_format: WeightFormat, unit: np.float32 | None) -> Grid:
        importance = block_view(self.importance[None], x.shape[2])[0]
        best = BestGrid(x.shape[:2])
        for scale, zero in _clipped(x, weight_format, unit):
            best.keep(scale, zero, _weighted_error(x, scale, zero, weight_format, importance))
        if not weight_format.symmetric:
            for scale, zero in best.neighbours(weight_format.bits):
                best.keep(scale, zero, _weighted_error(x, scale, zero, weight_format, importance))
        return best.scale, best.zero

    def divide(self, x: Float32, scale: Float32) -> Float32:
        return x / scale[..., None]


class BestGrid:
    """For each block the scale and zero point with the least error so far, in arrays of any shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.scale, self.zero = np.ones(shape, np.float32), np.zeros(shape, np.float32)
        self._error: Float32 | None = None

    def keep(self, scale: Float32, zero: Float32, error: Float32) -> None:
        """Where `error` is less than the least so far; everywhere at first."""
        if self._error is None:
            self.scale[...], self.zero[...], self._error = scale, zero, error
            return
        better = error < self._error
        for kept, new in ((self.scale, scale), (self.zero, zero), (self._error, error)):
            np.copyto(kept, new, where=better)

    def neighbours(self, bits: int) -> list[Grid]:
        """The best grid with the next lower and the next higher zero point."""
        top = np.float32(2**bits - 1)
        return [(self.scale.copy(), np.clip(self.zero + np.float32(shift), 0, top)) for shift in (-1, 1)]


def block_view(rows: Float32, block: int) -> Float32:
    """[rows, K] as [rows, blocks, block], a short last block padded with zeros."""
    short = -rows.shape[1] % block
    if short:
        rows = np.pad(rows, ((0, 0), (0, short)))
    return rows.reshape(len(rows), -1, block)


def positive_scale(scale: Float32) -> Float32:
    """`scale`, and 1 for blocks of zeros and of weights too small for a scale."""
    return np.where(scale > SMALLEST_SCALE, scale, np.float32(1))


def nearest_steps(quotients: Float32, zero: Float32, bits: int) -> Float32:
    """Quotients rounded in place to codes less the zero point, clipped to the codes' range. zero broadcasts."""
    np.rint(quotients, out=quotients)
    np.maximum(quotients, -zero, out=quotients)
    np.minimum(quotients, np.float32(2**bits - 1) - zero, out=quotients)
    return quotients


def _clipped(x: Float32, weight_format: WeightFormat, unit: np.float32 | None) -> Iterator[Grid]:
    """Candidate ranges of each block, the one without clipping first."""
    if unit is not None:
        yield from _nvfp4(x, unit)
    elif weight_format.symmetric:
        yield from _symmetric(x, weight_format)
    else:
        yield from _asymmetric(x, weight_format.bits)


def _nvfp4(x: Float32, unit: np.float32) -> Iterator[Grid]:
    full = np.abs(x).max(axis=2) / np.float32(FLOAT_TYPES[4].largest)
    for ratio in NVFP4_RATIOS:
        scale = FLOAT_TYPES[8].round(full * np.float32(ratio) / unit) * unit
        yield np.where(scale > 0, scale, unit), np.zeros_like(full)


def _symmetric(x: Float32, weight_format: WeightFormat) -> Iterator[Grid]:
    middle = 2.0 ** (weight_format.bits - 1)
    largest = np.float32(FLOAT_TYPES[8].largest if weight_format.floating else middle - 1)
    full = np.abs(x).max(axis=2) / largest
    zero = np.full_like(full, 0.0 if weight_format.floating else middle)
    for ratio in E4M3_RATIOS if weight_format.floating else SEARCH_RATIOS[weight_format.bits]:
        yield positive_scale(full * np.float32(ratio)), zero


def _asymmetric(x: Float32, bits: int) -> Iterator[Grid]:
    """At every ratio, with the zero point nearest to zero's place in the range."""
    top = np.float32(2**bits - 1)
    low, high = extremes(x, axis=2)
    for ratio in SEARCH_RATIOS[bits]:
        scale = positive_scale((high - low) * np.float32(ratio) / top)
        yield scale, np.clip(np.rint(-low * np.float32(ratio) / scale), 0, top)


def _weighted_error(
    x: Float32, scale: Float32, zero: Float32, weight_format: WeightFormat, importance: Float32
) -> Float32:
    """The sum over each block's columns of importance * (quantised - x)^2, [rows, blocks]."""
    steps = x / scale[..., None]
    if weight_format.floating:
        steps = FLOAT_TYPES[weight_format.bits].round(steps)
    else:
        steps = nearest_steps(steps, zero[..., None], weight_format.bits)
    steps *= scale[..., None]
    steps -= x
    steps *= steps
    error: Float32 = np.einsum("rbk,bk->rb", steps, importance)
    return error


def extremes(x: Float32, axis: int) -> tuple[Float32, Float32]:
    """The smallest and the largest weight of each block, with zero in the range."""
    return np.minimum(x.min(axis=axis), 0), np.maximum(x.max(axis=axis), 0)
