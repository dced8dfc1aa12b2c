import numpy as np
import pytest

from megrez.calibration.weights.blocks import BlockQuantized


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [64, 70, 33, 5])
@pytest.mark.parametrize("zero_points", [True, False])
@pytest.mark.parametrize("offsets", [True, False])
def test_dequantize_is_its_formula_element_by_element(bits, columns, zero_points, offsets):
    rng = np.random.default_rng(0)
    shape = 3, -(-columns // 32)
    matrix = BlockQuantized(
        bits=bits,
        block=32,
        codes=rng.integers(0, 2**bits, (3, columns), np.uint8),
        scales=rng.standard_normal(shape, np.float32),
        zero_points=rng.integers(0, 2**bits, shape, np.uint8) if zero_points else None,
        offsets=rng.standard_normal(shape, np.float32) if offsets else None,
    )
    values = matrix.dequantize()
    assert values.shape == (3, columns) and values.dtype == np.float32
    for row, column in np.ndindex(values.shape):
        at = row, column // 32
        zero = int(matrix.zero_points[at]) if matrix.zero_points is not None else 2 ** (bits - 1)
        offset = float(matrix.offsets[at]) if matrix.offsets is not None else 0.0
        expected = float(matrix.scales[at]) * (int(matrix.codes[row, column]) - zero) + offset
        assert values[row, column] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_float8_codes_are_bit_patterns_of_e4m3():
    # Sign, 4 bits of exponent biased by 7, 3 of mantissa: 1, -448 (the largest), 2**-9 (the smallest), 1.125.
    codes = np.array([[0b0_0111_000, 0b1_1111_110, 0b0_0000_001, 0b0_0111_001]], np.uint8)
    matrix = BlockQuantized(bits=8, block=4, codes=codes, scales=np.full((1, 1), 0.5, np.float32), floating=True)
    np.testing.assert_array_equal(matrix.dequantize(), [[0.5, -224.0, 2.0**-10, 0.5625]])
