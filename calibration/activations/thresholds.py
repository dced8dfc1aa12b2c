"""Where to clip values whose magnitudes a histogram counts; knows neither the values nor where they came from.

Everywhere: counts [rows, bins], whose bin i holds magnitudes from i * width on; widths and largest [rows], the latter
exact and in the last bin that is not empty. The answer is float32 [rows], at most `largest`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.data_types import NumberFormat

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Counts = NDArray[np.int64]

# TensorRT's first candidate keeps 128 of 2048 bins.
SMALLEST_SHARE = 16


def percentile(counts: Counts, widths: Float64, largest: Float32, *, percent: float) -> Float32:
    """The upper edge of the bin up to which `percent` of the values lie; exactly `largest` for 100."""
    reached = counts.cumsum(axis=1) * 100.0 >= percent * counts.sum(axis=1, keepdims=True)
    return _capped((reached.argmax(axis=1) + 1) * widths, largest)


def least_squared_error(
    counts: Counts, widths: Float64, largest: Float32, *, number_format: NumberFormat, shares: Sequence[float]
) -> Float32:
    """Of `shares` of `largest`, the one that leaves the least squared error of rounding and clipping.

    A bin's values count as its centre. Of shares that do equally well, the first.
    """
    bins = np.arange(counts.shape[1])
    centres = np.minimum((bins + 0.5) * widths[:, None], largest[:, None].astype(np.float64))
    best, least = np.zeros_like(largest), np.full(len(largest), np.inf)
    for share in shares:
        amax = (largest * np.float64(share)).astype(np.float32)
        scales = np.where(amax > 0, amax.astype(np.float64) / number_format.largest, 1.0)[:, None]
        rounded = number_format.round((centres / scales).astype(np.float32)) * scales
        error = (counts * np.square(rounded - centres)).sum(axis=1)
        better = error < least
        best[better], least[better] = amax[better], error[better]
    return best


def least_divergence(counts: Counts, widths: Float64, largest: Float32, *, number_format: NumberFormat) -> Float32:
    """The threshold whose rounded distribution is nearest to the clipped one, in Kullback-Leibler divergence.

    TensorRT's entropy calibration (S. Migacz, 8-bit Inference with TensorRT, GTC 2017, session S7310): the reference
    is the first n bins with all beyond them added to the last; the candidate spreads the mass of every number of the
    format evenly over those of its bins that are not empty. TensorRT gives each number equally many bins; here a bin
    belongs to the number that its centre is rounded to, which holds for floating-point formats too.
    """
    bins = counts.shape[1]
    filled = bins - (counts[:, ::-1] > 0).argmax(axis=1)
    best, least = np.full(len(largest), bins), np.full(len(largest), np.inf)
    for kept in range(max(1, bins // SMALLEST_SHARE), bins + 1):
        numbers = number_format.round(((np.arange(kept) + 0.5) * (number_format.largest / kept)).astype(np.float32))
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        divergence = np.where(kept <= filled, _divergence(counts, kept, starts), np.inf)
        better = divergence < least
        best[better], least[better] = kept, divergence[better]
    return _capped(best * widths, largest)


def _divergence(counts: Counts, kept: int, starts: NDArray[np.int64]) -> Float64:
    """KL(clipped || rounded) of each row [rows]; `starts` are the first bins of the numbers."""
    inside = counts[:, :kept]
    clipped = inside.astype(np.float64)
    clipped[:, -1] += counts[:, kept:].sum(axis=1)
    sizes = np.diff(starts, append=kept)
    filled = np.add.reduceat(inside > 0, starts, axis=1, dtype=np.int64)
    mass = np.add.reduceat(inside, starts, axis=1) / np.maximum(filled, 1)
    rounded = np.where(inside > 0, np.repeat(mass, sizes, axis=1), 0.0)
    p = clipped / np.maximum(clipped.sum(axis=1, keepdims=True), 1)
    q = rounded / np.maximum(rounded.sum(axis=1, keepdims=True), 1)
    ratio = np.divide(p, q, out=np.where(p > 0, np.inf, 1.0), where=(p > 0) & (q > 0))
    return np.asarray((p * np.log(ratio)).sum(axis=1))


def _capped(threshold: Float64, largest: Float32) -> Float32:
    return np.minimum(threshold, largest.astype(np.float64)).astype(np.float32)
