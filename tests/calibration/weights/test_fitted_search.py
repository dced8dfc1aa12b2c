"""RTN beside a search of all its candidates in float64, and every code beside all codes."""

import numpy as np
import pytest
from numpy.typing import NDArray

from megrez.calibration.weights import nearest
from megrez.calibration.weights.blocks import BlockQuantized
from megrez.calibration.weights.fitted_search import FittedSearch
from megrez.calibration.weights.nearest import quantize_nearest
from megrez.engines.weight_formats import WeightFormat
from megrez.runtime.errors import CheckpointError

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
# bits, symmetric, positive
CASES = [(bits, *case) for bits in (4, 8) for case in ((True, False), (True, True), (False, False))]
every_case = pytest.mark.parametrize(("bits", "symmetric", "positive"), CASES)
# What the search promises to try, as ratios of the range from the block's extremes.
RATIOS = {4: (1, 0.96, 0.92), 8: (128 / 127, 1, 0.99)}


def quantize(
    weight: Float32, *, bits: int, symmetric: bool, positive: bool = False, block: int | None = 32
) -> BlockQuantized:
    weight_format = WeightFormat(bits=bits, block=block, symmetric=symmetric)
    return quantize_nearest(weight, weight_format, FittedSearch(positive=positive))


def random_matrix(rows: int, columns: int, seed: int = 0) -> Float32:
    """Heavy-tailed weights of either sign; row 0 has one sign only."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_t(4, (rows, columns)).astype(np.float32)
    matrix[0] = np.abs(matrix[0])
    return matrix


def naive_code(value: float, scale: float, zero: int, bits: int) -> int:
    """Of all codes, the one whose value is nearest, in float64; the lowest when two are equally near."""
    return min(range(2**bits), key=lambda code: abs(value - scale * (code - zero)))


def zero_points(quantized: BlockQuantized) -> NDArray[np.integer]:
    if quantized.zero_points is None:
        return np.full(quantized.scales.shape, 2 ** (quantized.bits - 1))
    return quantized.zero_points


@every_case
def test_every_code_is_the_nearest(bits: int, symmetric: bool, positive: bool) -> None:
    weight = random_matrix(3, 70)
    quantized = quantize(weight, bits=bits, symmetric=symmetric, positive=positive)
    assert (quantized.zero_points is None) == symmetric
    assert quantized.scales.shape == (3, 3)
    for row, column in np.ndindex(weight.shape):
        scale = float(quantized.scales[row, column // 32])
        zero = int(zero_points(quantized)[row, column // 32])
        value = float(weight[row, column])
        best = naive_code(value, scale, zero, bits)
        found = int(quantized.codes[row, column])
        tie = abs(value / scale + zero - (found + best) / 2) < 1e-4
        assert found == best or (abs(found - best) == 1 and tie)


def fit(x: Float64, scale: float, zero: float, bits: int) -> tuple[float, float, float]:
    """Squared error, scale and zero point after a least-squares fit of the scale."""
    steps = np.clip(np.rint(x / scale), -zero, 2**bits - 1 - zero)
    fitted = float(x @ steps / (steps @ steps))
    return float(((fitted * steps - x) ** 2).sum()), fitted, zero


def candidates(x: Float64, bits: int, symmetric: bool, positive: bool) -> list[tuple[float, float, float]]:
    """Squared error, scale and zero point of every candidate for one block x, its scale fitted by least squares."""
    top, half = 2**bits - 1, 2 ** (bits - 1)
    low, high = x.min(), x.max()
    if symmetric:
        full = max(high / (half - 1), low / -half) if positive else (high if high > -low else low) / -half
        return [fit(x, full * ratio, float(half), bits) for ratio in RATIOS[bits]]
    low, high = min(low, 0.0), max(high, 0.0)
    full = (high - low) / top
    zero = float(np.rint(-low / full))
    found = [fit(x, full * ratio, zero, bits) for ratio in RATIOS[bits]]
    _, scale, _ = min(found, key=lambda one: one[0])
    return found + [fit(x, scale, float(np.clip(zero + shift, 0, top)), bits) for shift in (-1, 1)]


@every_case
def test_the_best_candidate_is_taken(bits: int, symmetric: bool, positive: bool) -> None:
    weight = random_matrix(16, 150)
    quantized = quantize(weight, bits=bits, symmetric=symmetric, positive=positive)
    others = 0
    for row, start in np.ndindex(16, 5):
        x = weight[row, start * 32 : (start + 1) * 32].astype(np.float64)
        tried = candidates(x, bits, symmetric, positive)
        scale, zero = float(quantized.scales[row, start]), float(zero_points(quantized)[row, start])
        error, *_ = min(tried, key=lambda one: one[0])
        near = [one for one in tried if one[0] <= error * 1.001]
        assert any(one[1] == pytest.approx(scale, rel=1e-5) and one[2] == zero for one in near)
        others += all(one[1] != pytest.approx(scale, rel=1e-5) for one in candidates(x, bits, symmetric, positive)[:1])
    assert others > 8


@every_case
def test_zero_blocks_and_vanishing_ones_come_back_as_zero(bits: int, symmetric: bool, positive: bool) -> None:
    weight = random_matrix(4, 96)
    weight[1, 32:64] = 0
    weight[2, :32] = np.float32(1e-42)
    weight[3] = 0
    quantized = quantize(weight, bits=bits, symmetric=symmetric, positive=positive)
    values = quantized.dequantize()
    assert not values[1, 32:64].any() and not values[2, :32].any() and not values[3].any()
    assert np.isfinite(values).all() and values[1, :32].any()
    assert not positive or (quantized.scales > 0).all()


@every_case
def test_a_short_last_block_is_what_the_block_alone_would_be(bits: int, symmetric: bool, positive: bool) -> None:
    weight = random_matrix(6, 100)
    whole, alone = (
        quantize(part, bits=bits, block=64, symmetric=symmetric, positive=positive)
        for part in (weight, weight[:, 64:].copy())
    )
    np.testing.assert_array_equal(whole.codes[:, 64:], alone.codes)
    np.testing.assert_array_equal(whole.scales[:, 1:], alone.scales)
    np.testing.assert_array_equal(zero_points(whole)[:, 1:], zero_points(alone))


@every_case
def test_threads_and_tiles_change_nothing(
    bits: int, symmetric: bool, positive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = random_matrix(37, 96)
    whole = quantize(weight, bits=bits, symmetric=symmetric, positive=positive)
    monkeypatch.setattr(nearest, "TILE", 500)
    tiled = quantize(weight, bits=bits, symmetric=symmetric, positive=positive)
    np.testing.assert_array_equal(whole.codes, tiled.codes)
    np.testing.assert_array_equal(whole.scales, tiled.scales)
    np.testing.assert_array_equal(zero_points(whole), zero_points(tiled))


def test_weights_already_in_eight_bits_keep_their_values() -> None:
    """As in GGUF's Q8_0: signed codes to 127 and a scale per 32 weights."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (8, 4, 32)).astype(np.float32)
    codes[..., 0] = 127
    weight = (codes * rng.random((8, 4, 1), dtype=np.float32)).reshape(8, 128)
    np.testing.assert_allclose(quantize(weight, bits=8, symmetric=True).dequantize(), weight, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@every_case
def test_a_weight_that_is_not_finite_is_refused(bits: int, symmetric: bool, positive: bool, value: float) -> None:
    weight = random_matrix(4, 64)
    weight[3, 50] = value
    with pytest.raises(CheckpointError, match="not finite"):
        quantize(weight, bits=bits, symmetric=symmetric, positive=positive)


@pytest.mark.parametrize("bits", [4, 8])
def test_positive_scales_reach_both_extremes_of_a_block(bits: int) -> None:
    weight = random_matrix(16, 200)
    weight[3] = 0
    quantized = quantize(weight, bits=bits, symmetric=True, positive=True)
    assert (quantized.scales > 0).all() and quantized.zero_points is None
    assert not quantized.dequantize()[3].any()
    # No weight is clipped by more than the narrowest range tried leaves out, but for half a step of rounding.
    steps = np.repeat(quantized.scales, 32, axis=1)[:, :200]
    clipped = np.abs(weight) * (1 - min(RATIOS[bits])) + steps
    assert (np.abs(quantized.dequantize() - weight) <= clipped).all()
