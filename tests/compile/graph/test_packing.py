"""The byte layouts of MatMulNBits and GatherBlockQuantized, decoded by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray

from megrez.calibration.weights.blocks import BlockQuantized
from megrez.compile.graph.packing import packed_codes, packed_zero_points
from tests.quantized import decode


def matrix(bits: int, k: int, block: int, *, zero_points: bool = True) -> BlockQuantized:
    random = np.random.default_rng(0)
    shape = (3, -(-k // block))
    return BlockQuantized(
        bits=bits,
        block=block,
        codes=random.integers(0, 2**bits, (3, k)).astype(np.uint8),
        scales=random.normal(size=shape).astype(np.float32),
        zero_points=random.integers(0, 2**bits, shape).astype(np.uint8) if zero_points else None,
    )


def test_of_two_small_codes_the_earlier_is_in_the_low_half() -> None:
    codes = np.array([[1, 2, 3, 4, 5, 6, 7, 15]], np.uint8)
    whole = BlockQuantized(bits=4, block=4, codes=codes, scales=np.ones((1, 2), np.float32))
    assert packed_codes(whole).tolist() == [[[0x21, 0x43], [0x65, 0xF7]]]


def test_eight_bit_codes_lie_as_they_are() -> None:
    whole = matrix(8, 64, 32)
    np.testing.assert_array_equal(packed_codes(whole), whole.codes.reshape(3, 2, 32))
    np.testing.assert_array_equal(packed_zero_points(whole), whole.zero_points)


def test_an_odd_number_of_small_zero_points_ends_in_half_a_byte() -> None:
    codes = np.zeros((1, 96), np.uint8)
    zeros = np.array([[1, 2, 15]], np.uint8)
    whole = BlockQuantized(bits=4, block=32, codes=codes, scales=np.ones((1, 3), np.float32), zero_points=zeros)
    assert packed_zero_points(whole).tolist() == [[0x21, 0x0F]]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("k", [32, 64, 96, 100, 33])
@pytest.mark.parametrize("zero_points", [False, True])
def test_decoding_gives_the_matrix_back(bits: int, k: int, zero_points: bool) -> None:
    whole = matrix(bits, k, 32, zero_points=zero_points)
    zeros: NDArray[np.uint8] | None = packed_zero_points(whole) if zero_points else None
    codes = packed_codes(whole)
    assert codes.shape == (3, -(-k // 32), 32 * bits // 8) and codes.dtype == np.uint8
    found = decode(codes, whole.scales, zeros, bits=bits, block=32)[:, :k]
    spread = np.repeat(whole.scales, 32, axis=1)[:, :k].astype(np.float64)
    middle = 2 ** (bits - 1) if whole.zero_points is None else np.repeat(whole.zero_points, 32, axis=1)[:, :k]
    np.testing.assert_array_equal(found, spread * (whole.codes - np.asarray(middle, np.float64)))
