"""A histogram of magnitudes whose memory does not grow with the data; knows no data type."""

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

# The first range's end, where the factor from a value to its bin is still a float32 for any number of bins used.
SMALLEST_EXPONENT = -100


class MagnitudeHistogram:
    """`bins` equal bins from zero to the first power of two above the largest magnitude.

    The range grows by doubling, and pairs of neighbouring bins merge. Range and number of bins are powers of two: a
    value's bin is computed without rounding, so the counts do not depend on how the data was split or ordered.

    counts: int64 [bins]. largest: float32, exact.
    """

    def __init__(self, bins: int) -> None:
        assert bins >= 2 and bins & (bins - 1) == 0, "bins must be a power of two"
        self.counts = np.zeros(bins, np.int64)
        self.largest = np.float32(0)
        self._exponent = SMALLEST_EXPONENT

    def add(self, magnitudes: Float32) -> None:
        """Count finite values >= 0, [N]."""
        self.largest = np.maximum(self.largest, magnitudes.max(initial=0))
        self._grow()
        bins = len(self.counts)
        factor = np.float32(np.ldexp(1.0, bins.bit_length() - 1 - self._exponent))
        self.counts += np.bincount((magnitudes * factor).astype(np.intp), minlength=bins)

    def width(self) -> float:
        """Bin i counts values in [i * width, (i + 1) * width)."""
        return float(np.ldexp(1.0, self._exponent)) / len(self.counts)

    def _grow(self) -> None:
        """Widen the range until it holds the largest magnitude."""
        needed = int(np.frexp(self.largest)[1]) if self.largest > 0 else SMALLEST_EXPONENT
        doublings = max(needed - self._exponent, 0)
        if doublings:
            bins = len(self.counts)
            merged = self.counts.reshape(-1, min(1 << doublings, bins)).sum(axis=-1)
            self.counts = np.concatenate([merged, np.zeros(bins - len(merged), np.int64)])
        self._exponent += doublings
