"""Ranges beside those that brute force finds in all the values at once, in float64."""

import numpy as np
import pytest

from megrez.calibration.activations.data_types import Float8, Integer
from megrez.calibration.activations.histogram import MagnitudeHistogram
from megrez.calibration.activations.observers import (
    AbsMax,
    Entropy,
    Granularity,
    MeanSquaredError,
    Percentile,
    TokenBlock,
)
from megrez.calibration.activations.thresholds import least_squared_error
from megrez.runtime.errors import CheckpointError, UsageError

TENSOR, CHANNEL = Granularity.TENSOR, Granularity.CHANNEL
FORMATS = [Integer(8), Integer(4), Float8()]
OBSERVERS = {
    "largest": AbsMax,
    "percentile": lambda granularity: Percentile(99, granularity, bins=256),
    "error": lambda granularity: MeanSquaredError(Integer(4), granularity, bins=256),
    "entropy": lambda granularity: Entropy(Integer(4), granularity, bins=256),
}


def activations(tokens=400, channels=6, seed=0):
    """Heavy-tailed, channels of very different sizes, one of them all zeros and one that starts with zeros."""
    random = np.random.default_rng(seed)
    x = random.standard_t(4, (tokens, channels)) * 10.0 ** np.linspace(-6, 3, channels)
    x[:, 1] = 0
    x[: tokens // 2, 2] = 0
    return x.astype(np.float32)


def observed(observer, x, cuts=()):
    for part in np.split(x, list(cuts)):
        observer.update(part)
    found = observer.amax()
    assert found.dtype == np.float32
    return found


def groups(x, granularity):
    """The magnitudes that share a range, in float64."""
    magnitudes = np.abs(x.astype(np.float64))
    return [magnitudes.ravel()] if granularity is TENSOR else list(magnitudes.T)


def bin_width(values, bins):
    """A histogram spans the first power of two above the largest value."""
    return 2.0 ** (np.floor(np.log2(values.max())) + 1) / bins


@pytest.mark.parametrize("granularity", [TENSOR, CHANNEL])
@pytest.mark.parametrize("name", OBSERVERS)
def test_pieces_change_nothing(name, granularity):
    x = activations()
    whole = observed(OBSERVERS[name](granularity), x)
    assert whole.shape == (() if granularity is TENSOR else (6,))
    for cuts in ([1], range(0, 400, 7), [0, 0, 399], range(1, 400)):
        np.testing.assert_array_equal(observed(OBSERVERS[name](granularity), x, cuts), whole)
    np.testing.assert_array_equal(observed(OBSERVERS[name](granularity), x[::-1]), whole)


@pytest.mark.parametrize("granularity", [TENSOR, CHANNEL])
def test_the_largest_magnitude(granularity):
    x = activations()
    np.testing.assert_array_equal(
        observed(AbsMax(granularity), x, [3, 50]), np.squeeze([max(group) for group in groups(x, granularity)])
    )


@pytest.mark.parametrize("block", [1, 3, 32, 400, 1000])
@pytest.mark.parametrize("cuts", [[], [1], [2, 5, 64, 64, 131], range(1, 400)])
def test_the_largest_magnitude_of_each_block_of_tokens(block, cuts):
    x = activations()
    expected = [np.abs(x[at : at + block]).max() for at in range(0, len(x), block)]
    np.testing.assert_array_equal(observed(AbsMax(TokenBlock(block)), x, cuts), expected)


@pytest.mark.parametrize("name", OBSERVERS)
def test_zeros_give_zero(name):
    assert observed(OBSERVERS[name](TENSOR), np.zeros((5, 3), np.float32)) == 0
    np.testing.assert_array_equal(observed(OBSERVERS[name](CHANNEL), np.zeros((5, 3), np.float32)), np.zeros(3))
    np.testing.assert_array_equal(observed(OBSERVERS[name](CHANNEL), np.zeros((0, 3), np.float32)), np.zeros(3))


@pytest.mark.parametrize("granularity", [TENSOR, CHANNEL])
@pytest.mark.parametrize("percent", [1, 50, 99, 99.9, 100])
def test_a_percentile_is_within_a_bin(percent, granularity):
    x = activations()
    found = np.atleast_1d(observed(Percentile(percent, granularity), x, [17, 200]))
    for amax, values in zip(found, groups(x, granularity), strict=True):
        if not values.any():
            continue
        exact = np.percentile(values, percent, method="inverted_cdf")
        assert exact <= amax <= exact + bin_width(values, 2048) and amax <= values.max()
        assert percent < 100 or amax == values.max()


@pytest.mark.parametrize("percent", [0, -1, 100.5, float("nan")])
def test_a_percentage_out_of_range(percent):
    with pytest.raises(UsageError, match=r"the percentile of activations is .*: give more than 0 and at most 100"):
        Percentile(percent, TENSOR)


def squared_error(values, amax, number_format):
    scale = amax / number_format.largest
    rounded = number_format.round((values / scale).astype(np.float32)) * scale
    return np.square(rounded - values).mean()


@pytest.mark.parametrize("granularity", [TENSOR, CHANNEL])
@pytest.mark.parametrize("number_format", FORMATS)
def test_the_least_squared_error_among_shares(number_format, granularity):
    x = activations(2000)
    found = np.atleast_1d(observed(MeanSquaredError(number_format, granularity), x, [100, 900]))
    for amax, values in zip(found, groups(x, granularity), strict=True):
        if not values.any():
            continue
        errors = [squared_error(values, values.max() * percent / 100, number_format) for percent in range(1, 101)]
        assert np.isclose(amax / values.max() * 100, np.round(amax / values.max() * 100), rtol=1e-5)
        # A value is off from its bin's centre by half a width at most, which blurs the root of the mean square so.
        blur = bin_width(values, 2048) / 2
        assert np.sqrt(squared_error(values, float(amax), number_format)) <= np.sqrt(min(errors)) + 2 * blur


@pytest.mark.parametrize("number_format", FORMATS)
def test_the_least_squared_error_is_that_of_the_bins_centres(number_format):
    """Few bins, each wider than a step, so that a centre in the wrong place would choose another share."""
    random, shares = np.random.default_rng(0), [1.0, 0.93, 0.81, 0.7, 0.52, 0.4, 0.33]
    counts = (1000 * random.random((40, 16)) * 0.6 ** np.arange(16)).astype(np.int64)
    counts[:, 15] += 1
    largest = (15 + random.random(40)).astype(np.float32)
    found = least_squared_error(counts, np.ones(40), largest, number_format=number_format, shares=shares)
    for row in range(40):
        centres = np.minimum(np.arange(16) + 0.5, float(largest[row]))
        values = np.repeat(centres, counts[row])
        errors = [squared_error(values, float(largest[row]) * share, number_format) for share in shares]
        assert found[row] == pytest.approx(float(largest[row]) * shares[int(np.argmin(errors))], rel=1e-6)


def test_of_equal_errors_the_first_share_wins():
    nothing, largest = np.zeros((1, 4), np.int64), np.full(1, 3.5, np.float32)
    found = least_squared_error(nothing, np.ones(1), largest, number_format=Integer(8), shares=(0.5, 1.0))
    assert found == [1.75]


def test_the_least_squared_error_clips_outliers_only_where_steps_are_coarse():
    x = np.random.default_rng(0).normal(0, 1, (4000, 4)).astype(np.float32)
    found = [float(observed(MeanSquaredError(Integer(bits), TENSOR), x)) for bits in (3, 4, 8)]
    # Least-squares clipping of a Gaussian at symmetric uniform levels: about 2, 2.5 and 4 deviations.
    assert found[0] < found[1] < found[2] <= np.abs(x).max() and 1.5 < found[0] < 2.5 and 2.2 < found[1] < 3.1


def divergence(counts, kept, number_format):
    """Migacz's loop body, bin by bin."""
    clipped = [float(count) for count in counts[:kept]]
    clipped[-1] += sum(counts[kept:])
    centres = [(i + 0.5) / kept * number_format.largest for i in range(kept)]
    numbers = [float(number_format.round(np.array([centre], np.float32))[0]) for centre in centres]
    rounded = [0.0] * kept
    for number in set(numbers):
        bins = [i for i in range(kept) if numbers[i] == number and counts[i]]
        for i in bins:
            rounded[i] = sum(counts[j] for j in bins) / len(bins)
    total = 0.0
    for p, q in zip(clipped, rounded, strict=True):
        if p and not q:
            return np.inf
        if p:
            p, q = p / sum(clipped), q / sum(rounded)
            total += p * np.log(p / q)
    return total


@pytest.mark.parametrize("granularity", [TENSOR, CHANNEL])
@pytest.mark.parametrize("number_format", FORMATS)
def test_the_least_divergence(number_format, granularity):
    x, bins = activations(2000, 3), 128
    found = np.atleast_1d(observed(Entropy(number_format, granularity, bins=bins), x, [100, 900]))
    for amax, values in zip(found, groups(x, granularity), strict=True):
        if not values.any():
            continue
        width = bin_width(values, bins)
        counts = [int(count) for count in np.histogram(values, bins, (0, width * bins))[0]]
        stops = range(bins // 16, int(values.max() / width) + 2)
        divergences = [divergence(counts, kept, number_format) for kept in stops]
        # Rounding may turn the order of two that are as good.
        best = [
            min(kept * width, values.max())
            for kept, kl in zip(stops, divergences, strict=True)
            if kl <= min(divergences) + 1e-12
        ]
        assert np.isclose(amax, best, rtol=1e-6).any()


def test_entropy_clips_a_lone_outlier():
    x = np.random.default_rng(0).normal(0, 1, (20000, 1)).astype(np.float32)
    x[0] = 15.9
    assert observed(Entropy(Integer(8), TENSOR), x) < 6
    assert observed(AbsMax(TENSOR), x) == np.float32(15.9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", OBSERVERS)
def test_a_value_that_is_not_finite_is_refused_and_leaves_no_trace(name, value):
    observer, x = OBSERVERS[name](CHANNEL), activations()
    observer.update(x)
    before = observer.amax()
    bad = x * 2
    bad[3, 4] = value
    with pytest.raises(CheckpointError, match="the activations hold a value that is not finite"):
        observer.update(bad)
    np.testing.assert_array_equal(observer.amax(), before)


@pytest.mark.parametrize("name", OBSERVERS)
def test_the_extremes_of_float32(name):
    tiny, huge = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    x = np.array([[tiny, huge, 0, 2.0**-100], [tiny, -huge, 1, 1]], np.float32)
    found = observed(OBSERVERS[name](CHANNEL), x, [1])
    assert np.isfinite(found).all() and (found <= np.abs(x).max(axis=0)).all()
    assert observed(OBSERVERS[name](TENSOR), x, [1]) <= huge


def test_a_histogram_counts_as_numpy_does():
    x = np.abs(activations())
    histogram = MagnitudeHistogram(6, 64)
    for part in np.split(x, [5, 6, 250]):
        histogram.add(part)
    assert histogram.counts.sum(axis=1).tolist() == [400] * 6
    for row in (0, 2, 3, 4, 5):
        width = bin_width(x[:, row], 64)
        assert histogram.widths()[row] == width
        expected = np.histogram(x[:, row].astype(np.float64), 64, (0, 64 * width))[0]
        np.testing.assert_array_equal(histogram.counts[row], expected)
    np.testing.assert_array_equal(histogram.largest, x.max(axis=0))
