"""A static scale beside a search of all clipping ratios in float64, every value quantised by enumeration."""

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from megrez.calibration.activations.inputs import align_channels, choose_scale, fake_quantize

Float64 = NDArray[np.float64]
_E4M3 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
VALUES = {"int8": np.arange(-127.0, 128.0), "fp8": np.unique(_E4M3[np.isfinite(_E4M3)])}
RATIOS = {
    "int8": [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1],
    "fp8": [2 ** (-i / 4) for i in range(12)],
}
formats = pytest.mark.parametrize("inputs", VALUES)


def errors(x: NDArray[np.float32], scale: float, inputs: str) -> Float64:
    """The distance of each of x to the nearest value of the data type."""
    values, steps = VALUES[inputs], x.astype(np.float64) / scale
    above = np.clip(np.searchsorted(values, steps), 1, len(values) - 1)
    return scale * np.minimum(np.abs(steps - values[above]), np.abs(steps - values[above - 1]))


def cost(x: NDArray[np.float32], scale: float, inputs: str, importance: Float64) -> float:
    return float((errors(x, scale, inputs) ** 2 @ importance).sum())


def activations(seed: int) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    return (random.standard_t(3, (60, 9)) * 10.0 ** random.uniform(-1.5, 1.5, 9)).astype(np.float32)


@formats
def test_no_ratio_leaves_less(inputs: str) -> None:
    smaller = 0
    for seed in range(8):
        x, importance = activations(seed), 10.0 ** np.random.default_rng(100 + seed).uniform(-3, 3, 9)
        found = choose_scale(x, importance.astype(np.float32), inputs)
        full = float(np.abs(x).max()) / VALUES[inputs].max()
        tried = [cost(x, full * ratio, inputs, importance) for ratio in RATIOS[inputs]]
        assert cost(x, found, inputs, importance) == pytest.approx(min(tried), rel=1e-4)
        assert found == np.float32(found) and found <= full * 1.000001
        smaller += found < 0.99 * full
    assert smaller > 0


def test_importance_decides_what_is_clipped() -> None:
    """A lone outlier is kept while its channel has weights, and clipped when all of them are zero."""
    x = np.random.default_rng(0).uniform(-1, 1, (50, 4)).astype(np.float32)
    x[7, 2] = 10
    equal, unused = np.ones(4, np.float32), np.array([1, 1, 0, 1], np.float32)
    assert choose_scale(x, equal, "int8") == np.float32(10 / 127)
    assert choose_scale(x, unused, "int8") == pytest.approx(1 / 127, rel=1e-3)


def test_the_range_is_of_every_token() -> None:
    """The largest is seen wherever it is, though scales are compared on some of the tokens."""
    x = np.full((5000, 2), 0.5, np.float32)
    x[4321, 1] = 100
    for inputs, values in VALUES.items():
        tried = [100 / values.max() * ratio for ratio in RATIOS[inputs]]
        found = choose_scale(x, np.ones(2, np.float32), inputs)
        assert min(abs(found / one - 1) for one in tried) < 1e-6


@formats
def test_zeros_have_the_scale_1(inputs: str) -> None:
    assert choose_scale(np.zeros((5, 3), np.float32), np.ones(3, np.float32), inputs) == 1.0


@formats
def test_inputs_whose_weights_are_zero_still_have_a_scale(inputs: str) -> None:
    x = activations(0)
    scale = choose_scale(x, np.zeros(9, np.float32), inputs)
    assert scale == np.float32(float(np.abs(x).max()) / VALUES[inputs].max())


@formats
def test_fake_quantisation_gives_the_nearest_value_times_the_scale(inputs: str) -> None:
    x = activations(3)
    kept = x.copy()
    scale = float(np.float32(np.abs(x).max() * 0.3 / VALUES[inputs].max()))
    quantized = fake_quantize(x, scale, inputs)
    assert quantized.dtype == np.float32 and quantized.shape == x.shape
    np.testing.assert_array_equal(x, kept)
    np.testing.assert_allclose(np.abs(quantized - x.astype(np.float64)), errors(x, scale, inputs), rtol=1e-3, atol=1e-5)
    assert np.abs(quantized).max() == pytest.approx(scale * VALUES[inputs].max())  # saturated


def test_aligned_channels_lie_where_their_steps_are_fine() -> None:
    """A channel of one magnitude loses nothing; no channel gets worse, by enumeration in float64."""
    random = np.random.default_rng(0)
    x = activations(1)
    x[:, 3] = random.choice([-1, 1], len(x)) * 1.06  # between 1 and 1.125, the worst place in the octave
    scale = 0.5
    factors = align_channels(x, scale, "fp8")
    assert factors.dtype == np.float32 and factors.shape == (9,)
    assert ((factors > 0.5) & (factors <= 1)).all() and len(set(factors)) > 2
    aligned, plain = errors(x * factors, scale, "fp8") / factors, errors(x, scale, "fp8")
    assert ((aligned**2).sum(axis=0) <= (plain**2).sum(axis=0) * (1 + 1e-5)).all()
    assert aligned[:, 3].max() < 0.2 * plain[:, 3].max()


def test_a_channel_of_zeros_is_left_where_it_is() -> None:
    np.testing.assert_array_equal(align_channels(np.zeros((4, 3), np.float32), 1.0, "fp8"), np.ones(3, np.float32))
