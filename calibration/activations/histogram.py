"""Counts of magnitudes in a memory that does not grow with the data; knows nothing of what they are for."""

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# A row's range begins here, where the factor from a value to its bin is still a float32 for any number of bins used.
SMALLEST_EXPONENT = -100


class MagnitudeHistogram:
    """One histogram per row, with `bins` equal bins from zero to the first power of two above the row's largest.

    A range grows by doubling, and pairs of neighbouring bins merge. Ranges and the number of bins are powers of two:
    a value's bin is computed without rounding, so the counts do not depend on the order or the pieces data came in.

    counts: int64 [rows, bins]. largest: float32 [rows], exact.
    """

    def __init__(self, rows: int, bins: int) -> None:
        assert bins >= 2 and bins & (bins - 1) == 0, "bins must be a power of two"
        self.counts = np.zeros((rows, bins), np.int64)
        self.largest = np.zeros(rows, np.float32)
        self._exponents = np.full(rows, SMALLEST_EXPONENT)

    def add(self, magnitudes: Float32) -> None:
        """Count finite values >= 0, [N, rows]."""
        rows, bins = self.counts.shape
        np.maximum(self.largest, magnitudes.max(axis=0, initial=0), out=self.largest)
        self._grow()
        factors = np.ldexp(np.float32(1), bins.bit_length() - 1 - self._exponents).astype(np.float32)
        at = (magnitudes * factors).astype(np.intp)
        at += np.arange(rows) * bins
        np.add.at(self.counts.reshape(-1), at.reshape(-1), 1)

    def widths(self) -> Float64:
        """The width of each row's bins, [rows]; bin i holds values from i * width up to, not including, its end."""
        ranges: Float64 = np.ldexp(1.0, self._exponents)
        return ranges / self.counts.shape[1]

    def _grow(self) -> None:
        """Widen the ranges that the largest magnitudes have left."""
        needed = np.where(self.largest > 0, np.frexp(self.largest)[1], SMALLEST_EXPONENT)
        doublings = np.maximum(needed - self._exponents, 0)
        bins = self.counts.shape[1]
        for times in np.unique(doublings[doublings > 0]):
            grown = np.flatnonzero(doublings == times)
            merged = self.counts[grown].reshape(len(grown), -1, min(1 << int(times), bins)).sum(axis=-1)
            self.counts[grown] = 0
            self.counts[grown, : merged.shape[1]] = merged
        self._exponents += doublings
