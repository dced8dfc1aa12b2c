"""Rounding beside an enumeration of every value of the data type, in float64."""

import numpy as np
import pytest

from megrez.calibration.activations.data_types import E2M1, E4M3, NVFP4, Integer, tensor_scale


def e4m3_value(pattern):
    """The value of a bit pattern as the paper defines it; None for NaN."""
    sign, exponent, mantissa = pattern >> 7, pattern >> 3 & 15, pattern & 7
    if exponent == 15 and mantissa == 7:
        return None
    magnitude = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -magnitude if sign else magnitude


# Patterns of positive values, 0 to 126, are in the order of their values; an even pattern has an even mantissa.
E4M3_VALUES = [e4m3_value(pattern) for pattern in range(127)]


def nearest(value, numbers):
    """Of `numbers`, in order from zero, the nearest to |value|, with value's sign; of two as near, the even index."""
    at = min(range(len(numbers)), key=lambda i: (abs(numbers[i] - abs(value)), i % 2))
    return np.copysign(numbers[at], value)


def some_values(largest):
    random = np.random.default_rng(0)
    return np.concatenate(
        [random.uniform(-1.2, 1.2, 500) * largest, largest * 2.0 ** random.uniform(-22, 1, 500)]
    ).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_integers(bits):
    numbers = list(range(2 ** (bits - 1)))
    assert Integer(bits).largest == numbers[-1]
    values = np.concatenate([some_values(numbers[-1]), np.arange(-300, 300, dtype=np.float32) / 2])
    found = Integer(bits).round(values)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [nearest(float(value), numbers) for value in values])


def test_e4m3_values_round_to_themselves():
    values = [value for value in map(e4m3_value, range(256)) if value is not None]
    assert len(values) == 254 and E4M3().largest == max(values) == 448
    np.testing.assert_array_equal(E4M3().round(np.array(values, np.float32)), values)


def test_e4m3_rounds_to_the_nearest_and_ties_to_even():
    middles = (np.array(E4M3_VALUES[1:]) + np.array(E4M3_VALUES[:-1])) / 2
    beside = [np.nextafter(np.float32(m), np.float32(side)) for m in middles for side in (0, 500)]
    values = np.concatenate([middles, -middles, beside, some_values(448)]).astype(np.float32)
    expected = [nearest(float(value), E4M3_VALUES) for value in values]
    for found in (E4M3().round(values), E4M3().decode(E4M3().encode(values))):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("data_type", [Integer(8), E4M3()])
def test_what_is_too_large_becomes_the_largest(data_type):
    values = np.array([460, 465, 1e6, 3e38, np.inf], np.float32)
    assert set(data_type.round(values)) == {data_type.largest}
    assert set(data_type.round(-values)) == {-data_type.largest}
    assert data_type.round(np.array([0, -0.0], np.float32)).tolist() == [0, 0]


E2M1_VALUES = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def test_e2m1_rounds_to_the_nearest_and_ties_to_even():
    middles = (np.array(E2M1_VALUES[1:]) + np.array(E2M1_VALUES[:-1])) / 2
    values = np.concatenate([E2M1_VALUES, middles, -middles, some_values(6), [6.5, 100, -7]]).astype(np.float32)
    found = E2M1().round(values)
    assert found.dtype == np.float32 and E2M1().largest == 6
    np.testing.assert_array_equal(found, [nearest(float(value), E2M1_VALUES) for value in values])


def test_e2m1_patterns_are_in_the_order_of_their_values():
    patterns = E2M1().encode(np.array([*E2M1_VALUES, *(-np.array(E2M1_VALUES))], np.float32))
    assert patterns.tolist() == list(range(16))
    assert E2M1().decode(patterns).tolist() == [*E2M1_VALUES, *(-np.array(E2M1_VALUES))]


def test_nvfp4_gives_each_block_of_16_an_e4m3_scale():
    x = np.random.default_rng(1).standard_t(3, (5, 3, 48)).astype(np.float32) * 40
    x[0, 0, 16:32] = 0
    x[1, 1, 7] = 3e4  # beyond 6 * 448: its block's scale is the largest, and it the largest value
    found = NVFP4().round(x)
    expected = np.empty_like(x)
    for at in np.ndindex(5, 3, 3):
        block = x[at[0], at[1], 16 * at[2] : 16 * at[2] + 16].astype(np.float64)
        scale = nearest(float(np.float32(np.abs(block).max() / 6)), E4M3_VALUES)
        rounded = [scale * nearest(float(np.float32(value / scale)), E2M1_VALUES) if scale else 0 for value in block]
        expected[at[0], at[1], 16 * at[2] : 16 * at[2] + 16] = rounded
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found).max() == NVFP4().largest == 2688


@pytest.mark.parametrize(("largest", "unit"), [(448, 1), (449, 2), (224, 0.5), (225, 1), (1e-4, 2**-22), (0, 1)])
def test_scales_of_blocks_are_multiples_of_a_power_of_two_that_e4m3_can_count(largest, unit):
    assert tensor_scale(largest) == unit
