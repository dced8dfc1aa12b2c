"""Scales, zero points and codes beside a search of all candidates and all codes, in float64."""

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from megrez.calibration.weights import nearest
from megrez.calibration.weights.blocks import BlockQuantized
from megrez.calibration.weights.nearest import quantize_nearest
from megrez.calibration.weights.ranges import AbsMax, WeightedSearch
from megrez.engines.weight_formats import WeightFormat
from megrez.runtime.errors import CheckpointError

E4M3 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
FORMATS = [
    WeightFormat(bits=bits, block=block, symmetric=symmetric)
    for bits in (4, 8)
    for block in (32, None)
    for symmetric in (True, False)
] + [WeightFormat(bits=8, block=block, symmetric=True, floating=True) for block in (32, None)]
# What the search promises to try, as ratios of the full range.
RATIOS = {4: (1, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7), 8: (1, 0.95, 0.9, 0.85, 0.8)}
OCTAVE = [2 ** (-i / 8) for i in range(8)]
every_format = pytest.mark.parametrize("weight_format", FORMATS, ids=str)


def quantize(
    x: NDArray[np.float32], weight_format: WeightFormat, importance: NDArray[np.float32] | None = None
) -> BlockQuantized:
    policy = AbsMax() if importance is None else WeightedSearch(importance)
    return quantize_nearest(x, weight_format, policy)


def matrix(rows: int = 6, columns: int = 75, seed: int = 0) -> NDArray[np.float32]:
    """Heavy-tailed rows of very different sizes; one of zeros, one of positive and one of negative weights."""
    random = np.random.default_rng(seed)
    x = (random.standard_t(3, (rows, columns)) * 10.0 ** random.uniform(-4, 4, (rows, 1))).astype(np.float32)
    x[1], x[2], x[3] = 0, np.abs(x[2]), -np.abs(x[3])
    return x


def blocks(x: NDArray[np.float32], weight_format: WeightFormat) -> list[tuple[int, int, slice]]:
    """Row, block and columns of each block; the last of a row is short."""
    size = weight_format.block or x.shape[1]
    starts = range(0, x.shape[1], size)
    return [(row, i, slice(start, start + size)) for row in range(len(x)) for i, start in enumerate(starts)]


def values_of_codes(weight_format: WeightFormat, zero: float) -> NDArray[np.float64]:
    """What the codes stand for, in steps; infinite where a code is NaN."""
    if weight_format.floating:
        return np.where(np.isfinite(E4M3), E4M3, np.inf)
    return np.arange(2**weight_format.bits) - zero


def zero_of(made: BlockQuantized, weight_format: WeightFormat, row: int, block: int) -> float:
    assert (made.zero_points is None) == weight_format.symmetric
    return 2.0 ** (weight_format.bits - 1) if made.zero_points is None else float(made.zero_points[row, block])


def full_range(x: NDArray[np.float64], weight_format: WeightFormat) -> tuple[float, float]:
    """Scale and zero point of the range that clips nothing."""
    if weight_format.symmetric:
        top = 448 if weight_format.floating else 2 ** (weight_format.bits - 1) - 1
        scale, zero = np.abs(x).max() / top, 2.0 ** (weight_format.bits - 1)
    else:
        low, high = min(x.min(), 0.0), max(x.max(), 0.0)
        scale = (high - low) / (2**weight_format.bits - 1)
        zero = np.rint(-low / scale) if scale > 0 else 0.0
    return (scale if scale > 0 else 1.0), zero


def least_error(x: NDArray[np.float64], scale: float, zero: float, weight_format: WeightFormat) -> NDArray[np.float64]:
    return np.abs(x[:, None] - scale * values_of_codes(weight_format, zero)).min(axis=1)


@every_format
def test_without_importance_the_range_clips_nothing(weight_format: WeightFormat) -> None:
    x = matrix()
    made = quantize(x, weight_format)
    size = weight_format.block or x.shape[1]
    assert (made.bits, made.block, made.floating) == (weight_format.bits, size, weight_format.floating)
    assert made.codes.shape == x.shape and made.codes.max() < 2**weight_format.bits
    assert made.scales.shape == (len(x), -(-x.shape[1] // size)) and made.scales.dtype == np.float32
    assert (made.scales > 0).all() and made.offsets is None
    for row, block, part in blocks(x, weight_format):
        scale, zero = full_range(x[row, part].astype(np.float64), weight_format)
        assert made.scales[row, block] == pytest.approx(scale, rel=1e-6)
        assert zero_of(made, weight_format, row, block) == zero
        if not weight_format.floating:  # at most half a step, or a whole one where the zero point was rounded
            step = scale * (0.5 if weight_format.symmetric else 1.0)
            assert np.abs(made.dequantize()[row, part].astype(np.float64) - x[row, part]).max() <= step * 1.00001


@every_format
@pytest.mark.parametrize("weighted", [False, True])
def test_every_code_is_the_nearest(weight_format: WeightFormat, weighted: bool) -> None:
    x = matrix()
    importance = np.random.default_rng(1).uniform(0.1, 10, x.shape[1]).astype(np.float32) if weighted else None
    made = quantize(x, weight_format, importance)
    error = np.abs(made.dequantize().astype(np.float64) - x)
    for row, block, part in blocks(x, weight_format):
        scale, zero = float(made.scales[row, block]), zero_of(made, weight_format, row, block)
        least = least_error(x[row, part].astype(np.float64), scale, zero, weight_format)
        assert (error[row, part] <= least * (1 + 1e-5) + 1e-6 * np.abs(x[row, part])).all()


@every_format
def test_with_importance_the_best_candidate_is_taken(weight_format: WeightFormat) -> None:
    x = matrix(rows=12)
    importance = (10.0 ** np.random.default_rng(1).uniform(-3, 3, x.shape[1])).astype(np.float32)
    made = quantize(x, weight_format, importance)
    smaller = 0
    for row, block, part in blocks(x, weight_format):
        values, weights = x[row, part].astype(np.float64), importance[part].astype(np.float64)
        full, zero = full_range(values, weight_format)

        def error(
            scale: float, zero: float, x: NDArray[np.float64] = values, w: NDArray[np.float64] = weights
        ) -> float:
            return float(w @ least_error(x, scale, zero, weight_format) ** 2)

        ratios = OCTAVE if weight_format.floating else RATIOS[weight_format.bits]
        scale = full * min(ratios, key=lambda ratio: error(full * ratio, zero))
        top, shifts = 2**weight_format.bits - 1, (0,) if weight_format.symmetric else (-1, 0, 1)
        candidates = [error(scale, np.clip(zero + shift, 0, top)) for shift in shifts]
        found = error(float(made.scales[row, block]), zero_of(made, weight_format, row, block))
        assert found == pytest.approx(min(candidates), rel=1e-3, abs=1e-30)
        smaller += made.scales[row, block] < 0.99 * full
    assert smaller >= 3


def test_importance_decides_what_is_clipped() -> None:
    """A lone large weight is clipped when its input is zero, and kept when no other input matters."""
    x = np.linspace(-1, 1, 32, dtype=np.float32)[None].copy()
    x[0, 5] = 1.5
    weight_format = WeightFormat(bits=4, block=32, symmetric=True)
    zero_there, only_there = np.ones(32, np.float32), np.full(32, 1e-9, np.float32)
    zero_there[5], only_there[5] = 0, 1
    clipped, kept = (quantize(x, weight_format, importance) for importance in (zero_there, only_there))
    assert clipped.scales[0, 0] < 1.2 / 7
    assert np.abs(clipped.dequantize() - x)[0, 5] > 0.2
    assert np.abs(kept.dequantize() - x)[0, 5] < 1e-6


@every_format
def test_zeros_have_the_scale_1(weight_format: WeightFormat) -> None:
    x = matrix(columns=96)
    x[4, 32:64] = 0
    x[5] = 1e-38  # less than any scale could show
    for importance in (None, np.ones(96, np.float32), np.zeros(96, np.float32)):
        made = quantize(x, weight_format, importance)
        assert (made.scales[[1, 5]] == 1).all() and not made.dequantize()[[1, 5]].any()
        assert (made.scales > 0).all() and not made.dequantize()[4, 32:64].any()
        if weight_format.block == 32:
            assert made.scales[4, 1] == 1


@every_format
def test_pieces_of_work_join_without_a_seam(weight_format: WeightFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    x = matrix(rows=11)
    importance = np.random.default_rng(1).uniform(0.1, 10, x.shape[1]).astype(np.float32)
    whole = quantize(x, weight_format, importance)
    monkeypatch.setattr(nearest, "TILE", 3 * x.shape[1])
    pieces = quantize(x, weight_format, importance)
    np.testing.assert_array_equal(pieces.codes, whole.codes)
    np.testing.assert_array_equal(pieces.scales, whole.scales)
    np.testing.assert_array_equal(pieces.zero_points, whole.zero_points)


NVFP4 = WeightFormat(bits=4, block=16, symmetric=True, floating=True)


def test_nvfp4_scales_are_e4m3_values_times_one_power_of_two() -> None:
    x = np.random.default_rng(5).normal(0, 0.02, (7, 64)).astype(np.float32)
    x[2, 16:32] = 0
    made = quantize(x, NVFP4, np.ones(64, np.float32))
    units = [2.0**k for k in range(-30, 5)]
    finite = E4M3[np.isfinite(E4M3)]
    assert any(np.isin(made.scales / unit, finite).all() for unit in units)
    assert made.scales.shape == (7, 4) and (made.scales > 0).all() and made.codes.max() < 16
    assert not made.dequantize()[2, 16:32].any()


def test_nvfp4_codes_are_the_nearest_and_the_search_only_gains() -> None:
    x = np.random.default_rng(6).standard_t(4, (9, 80)).astype(np.float32)
    numbers = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    numbers = np.concatenate([numbers, -numbers])
    plain, searched = quantize(x, NVFP4), quantize(x, NVFP4, np.ones(80, np.float32))
    for made in (plain, searched):
        scale = np.repeat(made.scales, 16, axis=1).astype(np.float64)
        nearest = np.abs(x[..., None] - scale[..., None] * numbers).min(axis=-1)
        np.testing.assert_allclose(np.abs(made.dequantize() - x), nearest, rtol=0, atol=1e-6)
    lost = [float(np.square(made.dequantize() - x).sum()) for made in (plain, searched)]
    assert lost[1] < 0.95 * lost[0]


@pytest.mark.parametrize("weighted", [False, True])
def test_lpbq_scales_are_sixteenths_of_their_channel_s_largest(weighted: bool) -> None:
    x = matrix(columns=192)
    weight_format = WeightFormat(bits=4, block=64, symmetric=True, nested=True)
    importance = np.random.default_rng(1).uniform(0.1, 9, 192).astype(np.float32) if weighted else None
    free = quantize(x, WeightFormat(bits=4, block=64, symmetric=True), importance)
    made = quantize(x, weight_format, importance)
    largest = free.scales.max(axis=1, keepdims=True).astype(np.float64)
    steps = made.scales / (largest / 16)
    np.testing.assert_allclose(steps, np.clip(np.rint(free.scales / (largest / 16)), 1, 16), rtol=1e-6)
    nearest = np.clip(np.rint(x / np.repeat(made.scales, 64, axis=1)) + 8, 0, 15)
    np.testing.assert_array_equal(made.codes, nearest)


def test_a_block_of_zeros_does_not_coarsen_its_row() -> None:
    weight_format = WeightFormat(bits=4, block=64, symmetric=True, nested=True)
    x = np.random.default_rng(4).normal(0, 0.02, (8, 256)).astype(np.float32)
    without = quantize(np.delete(x, np.s_[64:128], axis=1), weight_format).dequantize()
    x[:, 64:128] = 0
    x[3] = 0
    made = quantize(x, weight_format).dequantize()
    assert not made[:, 64:128].any() and not made[3].any()
    rows = np.delete(np.arange(8), 3)
    np.testing.assert_array_equal(np.delete(made, np.s_[64:128], axis=1)[rows], without[rows])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@every_format
def test_a_weight_that_is_not_finite_is_refused(weight_format: WeightFormat, value: float) -> None:
    x = matrix()
    x[4, 50] = value
    for importance in (None, np.ones(x.shape[1], np.float32)):
        with np.errstate(invalid="ignore"), pytest.raises(CheckpointError, match="not finite"):
            quantize(x, weight_format, importance)


@pytest.mark.parametrize(("floating", "top"), [(False, 127), (True, 448)])
def test_the_largest_of_a_row_is_kept(floating: bool, top: int) -> None:
    x = matrix(rows=20, columns=33)
    made = quantize(x, WeightFormat(bits=8, block=None, symmetric=True, floating=floating))
    largest = np.abs(x).max(axis=1)
    np.testing.assert_allclose(made.scales[largest > 0, 0], largest[largest > 0] / top, rtol=1e-6)
    np.testing.assert_allclose(np.abs(made.dequantize()).max(axis=1), largest, rtol=1e-6)
