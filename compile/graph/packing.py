"""Block-quantised matrices in the byte layout of ONNX Runtime's MatMulNBits and GatherBlockQuantized."""

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.weights.blocks import BlockQuantized


def packed_codes(matrix: BlockQuantized) -> NDArray[np.uint8]:
    """uint8 [N, blocks, block * bits / 8]; of two 4-bit codes the first is in the low half of the byte."""
    rows, columns = matrix.codes.shape
    blocks = matrix.scales.shape[1]
    codes = matrix.codes
    if columns < blocks * matrix.block:
        codes = np.pad(codes, ((0, 0), (0, blocks * matrix.block - columns)))
    return _packed(codes, matrix.bits).reshape(rows, blocks, -1)


def packed_zero_points(matrix: BlockQuantized) -> NDArray[np.uint8]:
    """uint8 [N, ceil(blocks * bits / 8)], packed like the codes."""
    assert matrix.zero_points is not None
    zero_points = matrix.zero_points
    if matrix.bits == 4 and zero_points.shape[1] % 2:
        zero_points = np.pad(zero_points, ((0, 0), (0, 1)))
    return _packed(zero_points, matrix.bits)


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return codes
    assert bits == 4
    packed: NDArray[np.uint8] = codes[:, 1::2] << np.uint8(4)
    packed |= codes[:, ::2]
    return packed
