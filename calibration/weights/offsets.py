"""Blocks with a float minimum, in a format that has only scales and zero points; knows no engine.

GGUF's Q4_1 has a float minimum per block. Rounding it to a zero point shifts the block by up to half a step, which
costs a 135M model 0.25 nats of KL. The shift adds `shift * sum(x over the block)` to the product, so it is stored as
extra columns of the matrix that multiply the blocks' means of x: one column per block, in the same 4-bit codes.
"""

import numpy as np

from megrez.calibration.weights.blocks import BlockQuantized
from megrez.calibration.weights.nearest import quantize_nearest
from megrez.calibration.weights.ranges import AbsMax
from megrez.engines.weight_formats import WeightFormat


def folded_columns(columns: int, block: int) -> int:
    """The columns of a matrix of `columns` after `fold_offsets`."""
    return columns + columns // block


def fold_offsets(matrix: BlockQuantized) -> BlockQuantized:
    """A matrix [N, K + K / block] without offsets whose product with [x, block means of x] is matrix @ x.

    K is a multiple of the block. The nearest zero point replaces the offset; the remainder, at most half a step where
    the block spans zero, is quantised symmetrically, with an error of at most 1/14 of the largest remainder in its
    block. Raises CheckpointError for an offset that is not finite.
    """
    assert matrix.offsets is not None and matrix.codes.shape[1] % matrix.block == 0
    middle = 1 << (matrix.bits - 1)
    steps = np.divide(-matrix.offsets, matrix.scales, out=np.full_like(matrix.scales, middle), where=matrix.scales != 0)
    zero_points = np.clip(np.rint(steps), 0, 2 * middle - 1).astype(np.uint8)
    remainder = (matrix.offsets + matrix.scales * zero_points) * np.float32(matrix.block)  # for means instead of sums
    means = quantize_nearest(remainder, WeightFormat(bits=matrix.bits, block=matrix.block, symmetric=True), AbsMax())
    return BlockQuantized(
        bits=matrix.bits,
        block=matrix.block,
        codes=np.concatenate([matrix.codes, means.codes], axis=1),
        scales=np.concatenate([matrix.scales, means.scales], axis=1),
        zero_points=np.concatenate([zero_points, np.full(means.scales.shape, middle, np.uint8)], axis=1),
    )
