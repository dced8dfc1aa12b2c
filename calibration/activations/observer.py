"""The range of a tensor with the least quantisation error, from its histogram; knows no layer, model or text.

Data may come in any number of parts; none of it is kept.
"""

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.data_types import DataType
from megrez.calibration.activations.histogram import MagnitudeHistogram
from megrez.runtime.errors import CheckpointError

Float32 = NDArray[np.float32]
BINS = 2048
# Candidates for the range's end, as shares of the largest magnitude.
CLIPPING_RATIOS = tuple(percent / 100 for percent in range(100, 0, -1))


class MeanSquaredErrorObserver:
    """The per-tensor range with the least mean squared error of rounding and clipping."""

    def __init__(self, data_type: DataType) -> None:
        self._data_type, self._histogram = data_type, MagnitudeHistogram(BINS)

    def update(self, x: Float32) -> None:
        """Observe x of any shape. Raises CheckpointError where a value is not finite; then nothing is recorded."""
        magnitudes = np.abs(x).reshape(-1)
        if not np.isfinite(magnitudes.max(initial=0)):
            raise CheckpointError("the activations hold a value that is not finite: repair the checkpoint")
        self._histogram.add(magnitudes)

    def amax(self) -> float:
        """The magnitude that the data type's largest value represents; 0 where everything observed is zero."""
        return least_squared_error(self._histogram, self._data_type)

    def scale(self) -> float:
        """amax divided by the data type's largest value; 1 where everything observed is zero."""
        return self.amax() / self._data_type.largest or 1.0


def least_squared_error(histogram: MagnitudeHistogram, data_type: DataType) -> float:
    """The end of the range with the least squared error, of CLIPPING_RATIOS times the largest magnitude.

    Ties: the first. Values of a bin are taken to be its centre.
    """
    largest = histogram.largest
    centres = np.minimum((np.arange(len(histogram.counts)) + 0.5) * histogram.width(), np.float64(largest))
    best, least = np.float32(0), np.inf
    for ratio in CLIPPING_RATIOS:
        amax = np.float32(np.float64(largest) * ratio)
        scale = np.float64(amax) / data_type.largest if amax > 0 else 1.0
        quantized = data_type.round((centres / scale).astype(np.float32)) * scale
        error = (histogram.counts * np.square(quantized - centres)).sum()
        if error < least:
            best, least = amax, error
    return float(best)
