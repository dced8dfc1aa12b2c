"""Blocks with a real minimum, in codes that know only a scale and a zero point; knows no engine.

GGUF's Q4_1 keeps a float minimum per block. Rounding it to a zero point shifts the whole block by up to half a step,
which costs a 135M model 0.25 nats of KL. The shift adds `shift * sum(x over the block)` to the product, so it becomes
a few more columns of the matrix that multiply the blocks' means of x: one column per block, in the same 4-bit codes.
"""

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.weights.blocks import BlockQuantized


def folded_columns(columns: int, block: int) -> int:
    """How many columns `fold_offsets` gives a matrix of `columns`."""
    return columns + columns // block


def fold_offsets(matrix: BlockQuantized) -> BlockQuantized:
    """A matrix [N, K + K / block] without offsets whose product with [x, block means of x] is matrix @ x.

    K is a multiple of the block. The offset's nearest zero point is kept as such; the rest, at most half a step where
    the block spans zero, is rounded to symmetric codes: each is then wrong by at most 1/14 of the largest among
    its neighbours.
    """
    assert matrix.offsets is not None and matrix.codes.shape[1] % matrix.block == 0
    middle = 1 << (matrix.bits - 1)
    steps = np.divide(-matrix.offsets, matrix.scales, out=np.full_like(matrix.scales, middle), where=matrix.scales != 0)
    zero_points = np.clip(np.rint(steps), 0, 2 * middle - 1).astype(np.uint8)
    rest = (matrix.offsets + matrix.scales * zero_points) * np.float32(matrix.block)  # for means instead of sums
    codes, scales = _symmetric(rest, matrix.block, middle)
    return BlockQuantized(
        bits=matrix.bits,
        block=matrix.block,
        codes=np.concatenate([matrix.codes, codes], axis=1),
        scales=np.concatenate([matrix.scales, scales], axis=1),
        zero_points=np.concatenate([zero_points, np.full(scales.shape, middle, np.uint8)], axis=1),
    )


def _symmetric(values: NDArray[np.float32], block: int, middle: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes and scales of [N, K], the code of zero at `middle`; a last, short block is allowed."""
    starts = np.arange(0, values.shape[1], block)
    scales = (np.maximum.reduceat(np.abs(values), starts, axis=1) / np.float32(middle - 1)).astype(np.float32)
    steps = np.repeat(np.where(scales == 0, np.float32(1), scales), block, axis=1)[:, : values.shape[1]]
    codes = np.rint(values / steps) + np.float32(middle)
    return codes.astype(np.uint8), scales
