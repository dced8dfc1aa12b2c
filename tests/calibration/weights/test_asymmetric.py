"""Asymmetric calibration beside a least-squares solution in float64, and what it does for a layer."""

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from megrez.calibration.layer import Streams, calibrate_layer
from megrez.calibration.projections import Projection, quantize_group
from megrez.calibration.recipe import Recipe
from megrez.calibration.reference.decoder import forward, linear_of
from megrez.calibration.weights import asymmetric
from megrez.calibration.weights.asymmetric import AsymmetricCorrection, FullPrecision
from megrez.calibration.weights.gram import cross_gram_matrix, gram_matrix
from megrez.engines.weight_formats import WeightFormat
from tests.calibration_models import open_model, random_tokens
from tests.conftest import Make

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
TOKENS, N, K = 200, 24, 32
INT8 = WeightFormat(bits=8, block=16, symmetric=True)
FP8 = WeightFormat(bits=8, block=None, symmetric=True, floating=True)


def erroneous_inputs(seed: int = 0, tokens: int = TOKENS, rows: int = N) -> tuple[Float32, Float32, Float32, Float32]:
    """A weight, its inputs in the full-precision model and in the quantised one, and the residual error."""
    random = np.random.default_rng(seed)
    weight = random.normal(size=(rows, K)).astype(np.float32)
    full_precision = (random.normal(size=(tokens, K)) * random.uniform(0.1, 3, K)).astype(np.float32)
    quantized = (full_precision + 0.3 * full_precision @ random.normal(size=(K, K)) / np.sqrt(K)).astype(np.float32)
    residual_error = (quantized @ random.normal(size=(K, rows)) * 0.1).astype(np.float32)
    return weight, full_precision, quantized, residual_error


def least_squares(
    weight: Float32, full_precision: Float32, quantized: Float32, residual_error: Float32 | None
) -> Float64:
    """argmin |W' x~ - (W x + residual)|^2 / tokens + ridge |W' - W|^2: the ridge as K more equations."""
    w, x, y = (array.astype(np.float64) for array in (weight, quantized, full_precision))
    ridge = np.square(x).sum(axis=1).mean() / K * asymmetric.RIDGE
    wanted = y @ w.T + (0 if residual_error is None else residual_error)
    rows = np.concatenate([x / np.sqrt(len(x)), np.eye(K) * np.sqrt(ridge)])
    values = np.concatenate([wanted / np.sqrt(len(x)), w.T * np.sqrt(ridge)])
    return np.linalg.lstsq(rows, values, rcond=None)[0].T


def corrected(weight: Float32, reference: FullPrecision, quantized: Float32) -> Float32:
    correct = AsymmetricCorrection(reference=reference, inputs=quantized, gram=gram_matrix(quantized))
    return correct(weight)


@pytest.mark.parametrize("tokens", [TOKENS, K - 7])
@pytest.mark.parametrize("rows", [N, K + 5])
@pytest.mark.parametrize("to_residual", [False, True])
def test_weights_are_the_least_squares_solution(to_residual: bool, rows: int, tokens: int) -> None:
    """In each of the ways to compute it: few rows or many, more tokens than inputs or fewer."""
    weight, full_precision, quantized, residual_error = erroneous_inputs(tokens=tokens, rows=rows)
    residual = residual_error if to_residual else None
    if to_residual:
        reference = FullPrecision(outputs=full_precision @ weight.T + residual_error)
    else:
        reference = FullPrecision(inputs=full_precision)
    found = corrected(weight, reference, quantized)
    assert found.dtype == np.float32
    expected = least_squares(weight, full_precision, quantized, residual)
    assert np.abs(expected - weight).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_without_an_input_error_weights_stay_as_they_are() -> None:
    weight, full_precision, _, _ = erroneous_inputs()
    found = corrected(weight, FullPrecision(inputs=full_precision), full_precision)
    np.testing.assert_array_equal(found, weight)


@pytest.mark.parametrize("rows", [N, K + 5])
def test_a_weight_is_overwritten_only_where_it_may_be(rows: int) -> None:
    weight, full_precision, quantized, _ = erroneous_inputs(rows=rows)
    before = weight.copy()
    reference = FullPrecision(inputs=full_precision)
    correct = AsymmetricCorrection(reference=reference, inputs=quantized, gram=gram_matrix(quantized))
    found = correct(weight)
    np.testing.assert_array_equal(weight, before)
    np.testing.assert_array_equal(correct(weight, overwrite=True), found)
    assert np.shares_memory(correct(before, overwrite=True), before)


def test_inputs_of_zeros_change_nothing() -> None:
    weight, full_precision, quantized, residual_error = erroneous_inputs()
    quantized = np.zeros_like(quantized)
    for reference in (FullPrecision(inputs=full_precision), FullPrecision(outputs=residual_error)):
        np.testing.assert_array_equal(corrected(weight, reference, quantized), weight)


def test_an_outlier_channel_leaves_the_solution_accurate() -> None:
    """Massive activations: a channel a thousand times as large as the others, of one token."""
    weight, full_precision, quantized, residual_error = erroneous_inputs()
    for x in (full_precision, quantized):
        x[0, 3] = 1000
    expected = least_squares(weight, full_precision, quantized, residual_error)
    found = corrected(weight, FullPrecision(outputs=full_precision @ weight.T + residual_error), quantized)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected - weight).max())


def test_the_cross_gram_matrix_is_the_mean_of_all_pairs() -> None:
    _, _, quantized, residual_error = erroneous_inputs()
    expected = residual_error.astype(np.float64).T @ quantized / TOKENS
    np.testing.assert_allclose(cross_gram_matrix(residual_error, quantized), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gptq", [False, True])
@pytest.mark.parametrize("weight_format", [INT8, None])
def test_only_gptq_corrects_and_only_what_it_quantises(gptq: bool, weight_format: WeightFormat | None) -> None:
    weight, full_precision, quantized, _ = erroneous_inputs()
    one = Projection(name="p", weight=weight, bias=None, weight_format=weight_format)
    other = dataclasses.replace(one, name="o", weight_format=INT8)
    recipe = Recipe(smoothing=None, gptq=gptq, input_type=None, weight_format=lambda name: INT8)
    found = quantize_group(quantized, [one, other], recipe, reference=FullPrecision(inputs=full_precision))
    corrected = gptq and weight_format is not None
    expected = least_squares(weight, full_precision, quantized, None) if corrected else weight
    np.testing.assert_allclose(found.projections[0].weight, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        found(quantized)[:, :N], quantized @ expected.T, rtol=0, atol=0.01 * np.abs(found(quantized)).max()
    )


def test_aligned_inputs_are_compared_with_aligned_ones() -> None:
    """FP8 inputs are multiplied by factors first: without an input error, weights are divided by them and no more."""
    weight, full_precision, _, _ = erroneous_inputs()
    full_precision = full_precision * np.geomspace(0.1, 10, K).astype(np.float32)
    one = Projection(name="p", weight=weight, bias=None, weight_format=FP8)
    recipe = Recipe(smoothing=None, gptq=True, input_type="fp8", weight_format=lambda name: FP8)
    found = quantize_group(
        full_precision, [one], recipe, alignable=True, reference=FullPrecision(inputs=full_precision)
    )
    assert found.factors is not None and np.ptp(found.factors) > 0.1
    aligned = weight / found.factors
    assert np.abs(found.projections[0].weight - aligned).max() < 0.05 * np.abs(aligned).max()


def test_a_layer_brings_an_erroneous_stream_back(checkpoint_of: Make) -> None:
    """Against the layer's own weights on the same stream: 8 bits lose little, so the gain is the correction's."""
    model = open_model(checkpoint_of(), 24)
    full_precision = model.embed(random_tokens(8, 24, seed=1))
    random = np.random.default_rng(2)
    mixed = full_precision @ random.normal(size=(full_precision.shape[-1],) * 2).astype(np.float32)
    quantized = full_precision + np.float32(0.2 * full_precision.std() / mixed.std()) * mixed
    layer = model.layer(0)
    recipe = Recipe(smoothing=None, gptq=True, input_type=None, weight_format=lambda name: INT8)
    streams, _ = calibrate_layer(
        model.prefix(0),
        layer,
        model.shape,
        None,
        recipe,
        Streams(reference=full_precision, quantized=quantized, calibration_samples=6),
    )
    left = forward(quantized, layer, model.shape, None, linear_of(layer))
    for samples, share in ((slice(0, 6), 0.95), (slice(6, 8), 1.0)):
        apart, own = (np.square(y[samples] - streams.reference[samples]).sum() for y in (streams.quantized, left))
        assert apart < share * own
