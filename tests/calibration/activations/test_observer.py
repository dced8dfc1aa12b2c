"""Ranges beside those of a search over all the values at once, in float64."""

from collections.abc import Iterable

import numpy as np
import pytest
from numpy.typing import NDArray

from megrez.calibration.activations.data_types import E4M3, DataType, Integer
from megrez.calibration.activations.histogram import MagnitudeHistogram
from megrez.calibration.activations.observer import MeanSquaredErrorObserver, least_squared_error
from megrez.runtime.errors import CheckpointError

Float32 = NDArray[np.float32]
DATA_TYPES = [Integer(8), Integer(4), E4M3()]
every_type = pytest.mark.parametrize("data_type", DATA_TYPES)


def activations(tokens: int = 400, channels: int = 6, seed: int = 0) -> Float32:
    """Heavy-tailed, channels of very different sizes, one of them all zeros and one that starts with zeros."""
    random = np.random.default_rng(seed)
    x = random.standard_t(4, (tokens, channels)) * 10.0 ** np.linspace(-6, 3, channels)
    x[:, 1] = 0
    x[: tokens // 2, 2] = 0
    return x.astype(np.float32)


def observed(data_type: DataType, x: Float32, cuts: Iterable[int] = ()) -> MeanSquaredErrorObserver:
    observer = MeanSquaredErrorObserver(data_type)
    for part in np.split(x, list(cuts)):
        observer.update(part)
    return observer


def bin_width(values: Float32, bins: int) -> float:
    """A histogram spans the first power of two above the largest value."""
    return float(2.0 ** (np.floor(np.log2(np.abs(values).max())) + 1) / bins)


def squared_error(values: NDArray[np.float64], amax: float, data_type: DataType) -> float:
    scale = amax / data_type.largest
    quantized = data_type.round((values / scale).astype(np.float32)) * scale
    return float(np.square(quantized - values).mean())


def test_pieces_change_nothing() -> None:
    x = activations()
    whole = observed(Integer(4), x).amax()
    for cuts in ([1], range(0, 400, 7), [0, 0, 399], range(1, 400)):
        assert observed(Integer(4), x, cuts).amax() == whole
    assert observed(Integer(4), x[::-1]).amax() == whole


@every_type
def test_zeros_have_the_scale_1(data_type: DataType) -> None:
    for x in (np.zeros((5, 3), np.float32), np.zeros((0, 3), np.float32)):
        assert observed(data_type, x).amax() == 0.0 and observed(data_type, x).scale() == 1.0


@every_type
def test_the_least_squared_error_among_the_clipping_ratios(data_type: DataType) -> None:
    for channel in (0, 2, 3, 5):
        x = activations(2000)[:, channel : channel + 1]
        values = np.abs(x.astype(np.float64)).ravel()
        observer = observed(data_type, x, [100, 900])
        amax = observer.amax()
        assert observer.scale() == amax / data_type.largest
        errors = [squared_error(values, values.max() * percent / 100, data_type) for percent in range(1, 101)]
        assert np.isclose(amax / values.max() * 100, np.round(amax / values.max() * 100), rtol=1e-5)
        # A value is off from its bin's centre by half a width at most, which blurs the root of the mean square so.
        blur = bin_width(x, 2048) / 2
        assert np.sqrt(squared_error(values, amax, data_type)) <= np.sqrt(min(errors)) + 2 * blur


@every_type
def test_the_least_squared_error_is_that_of_the_bins_centres(data_type: DataType) -> None:
    """Few bins, each wider than a step, so that a centre in the wrong place would choose another ratio."""
    random = np.random.default_rng(0)
    for _ in range(40):
        histogram = MagnitudeHistogram(16)
        values = np.repeat(np.arange(16) + 0.25, (200 * random.random(16) * 0.6 ** np.arange(16)).astype(np.int64))
        largest = np.float32(15 + random.random())
        histogram.add(np.append(values, largest).astype(np.float32))
        assert histogram.width() == 1 and histogram.counts.sum() == len(values) + 1
        centres = np.minimum(np.floor(np.append(values, largest)) + 0.5, float(largest))
        errors = [squared_error(centres, float(largest) * percent / 100, data_type) for percent in range(100, 0, -1)]
        ratio = 1 - int(np.argmin(errors)) / 100
        assert least_squared_error(histogram, data_type) == pytest.approx(float(largest) * ratio, rel=1e-6)


def test_outliers_are_clipped_only_where_steps_are_coarse() -> None:
    x = np.random.default_rng(0).normal(0, 1, (4000, 4)).astype(np.float32)
    found = [observed(Integer(bits), x).amax() for bits in (3, 4, 8)]
    # Least-squares clipping of a Gaussian at symmetric uniform levels: about 2, 2.5 and 4 deviations.
    assert found[0] < found[1] < found[2] <= np.abs(x).max() and 1.5 < found[0] < 2.5 and 2.2 < found[1] < 3.1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_and_leaves_no_trace(value: float) -> None:
    x = activations()
    observer = observed(Integer(8), x)
    before = observer.amax()
    bad = x * 2
    bad[3, 4] = value
    with pytest.raises(CheckpointError, match="the activations hold a value that is not finite"):
        observer.update(bad)
    assert observer.amax() == before


@every_type
def test_the_extremes_of_float32(data_type: DataType) -> None:
    tiny, huge = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    for x in ([tiny, tiny], [huge, -huge], [0, 1], [tiny, huge], [2.0**-100, 1]):
        amax = observed(data_type, np.array(x, np.float32), [1]).amax()
        assert np.isfinite(amax) and amax <= np.abs(np.float32(x)).max()


def test_a_histogram_counts_as_numpy_does() -> None:
    for channel in (0, 2, 3, 4, 5):
        x = np.abs(activations()[:, channel])
        histogram = MagnitudeHistogram(64)
        for part in np.split(x, [5, 6, 250]):
            histogram.add(part)
        width = bin_width(x, 64)
        assert histogram.width() == width and histogram.largest == x.max()
        expected = np.histogram(x.astype(np.float64), 64, (0, 64 * width))[0]
        np.testing.assert_array_equal(histogram.counts, expected)
