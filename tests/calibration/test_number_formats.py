"""Rounding beside an enumeration of every number of the format, in float64."""

import numpy as np
import pytest

from megrez.calibration.number_formats import Float8, Integer


def e4m3_value(pattern):
    """The number of a bit pattern as the paper defines it; None for NaN."""
    sign, exponent, mantissa = pattern >> 7, pattern >> 3 & 15, pattern & 7
    if exponent == 15 and mantissa == 7:
        return None
    magnitude = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -magnitude if sign else magnitude


# Patterns of positive numbers, 0 to 126, are in the order of their values; an even pattern has an even mantissa.
E4M3 = [e4m3_value(pattern) for pattern in range(127)]


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


def test_e4m3_numbers_round_to_themselves():
    values = [value for value in map(e4m3_value, range(256)) if value is not None]
    assert len(values) == 254 and Float8().largest == max(values) == 448
    np.testing.assert_array_equal(Float8().round(np.array(values, np.float32)), values)


def test_e4m3_rounds_to_the_nearest_and_ties_to_even():
    middles = (np.array(E4M3[1:]) + np.array(E4M3[:-1])) / 2
    beside = [np.nextafter(np.float32(m), np.float32(side)) for m in middles for side in (0, 500)]
    values = np.concatenate([middles, -middles, beside, some_values(448)]).astype(np.float32)
    found = Float8().round(values)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [nearest(float(value), E4M3) for value in values])


@pytest.mark.parametrize("number_format", [Integer(8), Float8()])
def test_what_is_too_large_becomes_the_largest(number_format):
    values = np.array([460, 465, 1e6, 3e38, np.inf], np.float32)
    assert set(number_format.round(values)) == {number_format.largest}
    assert set(number_format.round(-values)) == {-number_format.largest}
    assert number_format.round(np.array([0, -0.0], np.float32)).tolist() == [0, 0]
