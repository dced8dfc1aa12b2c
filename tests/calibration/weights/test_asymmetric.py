"""Weights corrected for drift, beside a least-squares solution in float64, and what they do for a layer."""

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from megrez.calibration.layer import Streams, calibrate_layer
from megrez.calibration.recipe import Recipe
from megrez.calibration.reference.decoder import forward, linear_of
from megrez.calibration.rounding import Projection, round_point
from megrez.calibration.weights import asymmetric
from megrez.calibration.weights.asymmetric import Exact, correction
from megrez.calibration.weights.gram import cross_moments, second_moments
from megrez.engines.weight_formats import WeightFormat
from tests.conftest import Make
from tests.walked import open_model, random_tokens

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
TOKENS, N, K = 200, 24, 32
INT8 = WeightFormat(bits=8, block=16, symmetric=True)
FP8 = WeightFormat(bits=8, block=None, symmetric=True, floating=True)


def drifted(seed: int = 0) -> tuple[Float32, Float32, Float32, Float32]:
    """A weight, what it reads in the exact model and in the rounded one, and what its sum is short of."""
    random = np.random.default_rng(seed)
    weight = random.normal(size=(N, K)).astype(np.float32)
    exact = (random.normal(size=(TOKENS, K)) * random.uniform(0.1, 3, K)).astype(np.float32)
    met = (exact + 0.3 * exact @ random.normal(size=(K, K)) / np.sqrt(K)).astype(np.float32)
    missing = (met @ random.normal(size=(K, N)) * 0.1).astype(np.float32)
    return weight, exact, met, missing


def least_squares(weight: Float32, exact: Float32, met: Float32, missing: Float32 | None) -> Float64:
    """argmin |W' met - (W exact + missing)|^2 / tokens + ridge |W' - W|^2: the ridge as K more equations."""
    w, x, y = (array.astype(np.float64) for array in (weight, met, exact))
    ridge = np.square(x).sum(axis=1).mean() / K * asymmetric.RIDGE
    wanted = y @ w.T + (0 if missing is None else missing)
    rows = np.concatenate([x / np.sqrt(TOKENS), np.eye(K) * np.sqrt(ridge)])
    values = np.concatenate([wanted / np.sqrt(TOKENS), w.T * np.sqrt(ridge)])
    return np.linalg.lstsq(rows, values, rcond=None)[0].T


@pytest.mark.parametrize("joins", [False, True])
def test_weights_are_the_least_squares_solution(joins: bool) -> None:
    weight, exact, met, missing = drifted()
    asked = missing if joins else None
    found = correction(Exact(inputs=exact, missing=asked), met, second_moments(met))(weight)
    assert found.dtype == np.float32
    expected = least_squares(weight, exact, met, asked)
    assert np.abs(expected - weight).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_without_drift_weights_stay_as_they_are() -> None:
    weight, exact, _, _ = drifted()
    np.testing.assert_array_equal(correction(Exact(inputs=exact), exact, second_moments(exact))(weight), weight)


def test_inputs_of_zeros_teach_nothing() -> None:
    weight, exact, met, missing = drifted()
    met = np.zeros_like(met)
    found = correction(Exact(inputs=exact, missing=missing), met, second_moments(met))(weight)
    np.testing.assert_array_equal(found, weight)


def test_cross_moments_are_the_mean_of_all_pairs() -> None:
    _, _, met, missing = drifted()
    expected = missing.astype(np.float64).T @ met / TOKENS
    np.testing.assert_allclose(cross_moments(missing, met), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gptq", [False, True])
@pytest.mark.parametrize("form", [INT8, None])
def test_only_gptq_corrects_and_only_what_it_rounds(gptq: bool, form: WeightFormat | None) -> None:
    weight, exact, met, _ = drifted()
    one = Projection(name="p", weight=weight, bias=None, form=form)
    other = dataclasses.replace(one, name="o", form=INT8)
    recipe = Recipe(smoothing=None, gptq=gptq, inputs=None, form=lambda name: INT8)
    found = round_point(met, [one, other], recipe, exact=Exact(inputs=exact))
    corrected = gptq and form is not None
    expected = least_squares(weight, exact, met, None) if corrected else weight
    np.testing.assert_allclose(found.projections[0].weight, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found(met)[:, :N], met @ expected.T, rtol=0, atol=0.01 * np.abs(found(met)).max())


def test_aligned_inputs_are_compared_with_aligned_ones() -> None:
    """FP8 multiplies inputs by factors first: without drift the weights are but divided by them, and near to that."""
    weight, exact, _, _ = drifted()
    exact = exact * np.geomspace(0.1, 10, K).astype(np.float32)
    one = Projection(name="p", weight=weight, bias=None, form=FP8)
    recipe = Recipe(smoothing=None, gptq=True, inputs="fp8", form=lambda name: FP8)
    found = round_point(exact, [one], recipe, free=True, exact=Exact(inputs=exact))
    assert found.factors is not None and np.ptp(found.factors) > 0.1
    aligned = weight / found.factors
    assert np.abs(found.projections[0].weight - aligned).max() < 0.05 * np.abs(aligned).max()


def test_a_layer_leads_a_drifted_stream_back(checkpoint_of: Make) -> None:
    """Against the layer's own weights on the same stream: 8 bits lose next to nothing, so what is nearer is GPTQ's."""
    model = open_model(checkpoint_of(), 24)
    exact = model.embed(random_tokens(8, 24, seed=1))
    random = np.random.default_rng(2)
    mixed = exact @ random.normal(size=(exact.shape[-1],) * 2).astype(np.float32)
    met = exact + np.float32(0.2 * exact.std() / mixed.std()) * mixed
    layer = model.layer(0)
    recipe = Recipe(smoothing=None, gptq=True, inputs=None, form=lambda name: INT8)
    streams, _ = calibrate_layer(
        model.prefix(0), layer, model.shape, None, recipe, Streams(exact=exact, rounded=met, learn=6)
    )
    left = forward(met, layer, model.shape, None, linear_of(layer))
    for samples, share in ((slice(0, 6), 0.95), (slice(6, 8), 1.0)):
        apart, own = (np.square(y[samples] - streams.exact[samples]).sum() for y in (streams.rounded, left))
        assert apart < share * own
