"""One positive scale per output channel, from its largest weight: int8 and E4M3 as GPUs multiply; knows no text."""

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.data_types import Float8, Integer
from megrez.calibration.weights.blocks import BlockQuantized
from megrez.runtime.errors import CheckpointError

# Weights in one piece of work.
CHUNK = 1 << 20
INT8, E4M3 = Integer(8), Float8()


def quantize_channels(weight: NDArray[np.float32], *, floating: bool = False) -> BlockQuantized:
    """Codes of `weight` [N, K], each the nearest to its weight on its row's grid, which ends at the row's extreme.

    Raises CheckpointError for a weight that is not finite.
    """
    rows, columns = weight.shape
    codes, scales = np.empty(weight.shape, np.uint8), np.empty((rows, 1), np.float32)
    step = max(1, CHUNK // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        scales[part] = _scales(weight[part], floating)
        steps = weight[part] / scales[part]
        codes[part] = E4M3.encode(steps) if floating else (np.rint(steps) + np.float32(128)).astype(np.uint8)
    return BlockQuantized(bits=8, block=columns, codes=codes, scales=scales, floating=floating)


def _scales(weight: NDArray[np.float32], floating: bool) -> NDArray[np.float32]:
    """float32 [N, 1], 1 for a row of zeros."""
    largest = np.abs(weight).max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():
        raise CheckpointError("a matrix to quantise holds a weight that is not finite: repair the checkpoint")
    scales = largest / np.float32((E4M3 if floating else INT8).largest)
    # A scale that is no normal number would be inexact, and its reciprocal infinite.
    return np.where(scales > np.finfo(np.float32).tiny, scales, np.float32(1))
