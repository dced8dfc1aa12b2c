"""Quantised projections beside a simulation in float64: the input quantised, the matrix as stored, the product."""

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from megrez.calibration.projections import Projection, QuantizedGroup, quantize_group
from megrez.calibration.recipe import Recipe
from megrez.calibration.weights import gram
from megrez.calibration.weights.blocks import BlockQuantized
from megrez.calibration.weights.gptq import Gptq
from megrez.calibration.weights.gram import gram_matrix
from megrez.calibration.weights.nearest import quantize_nearest
from megrez.calibration.weights.ranges import WeightedSearch
from megrez.engines.weight_formats import WeightFormat

Float64 = NDArray[np.float64]
INT8 = WeightFormat(bits=8, block=None, symmetric=True)
INT4 = WeightFormat(bits=4, block=16, symmetric=False)
FP8 = WeightFormat(bits=8, block=None, symmetric=True, floating=True)
K = 40


def recipe(input_type: str | None, *, gptq: bool = True) -> Recipe:
    return Recipe(smoothing=None, gptq=gptq, input_type=input_type, weight_format=lambda name: None)


def some_inputs(tokens: int = 70) -> NDArray[np.float32]:
    random = np.random.default_rng(0)
    return (random.standard_t(4, (tokens, K)) * 10.0 ** random.uniform(-1, 1, K)).astype(np.float32)


def projections(*formats: WeightFormat | None) -> list[Projection]:
    """Of different heights; every second one has a bias."""
    random = np.random.default_rng(1)
    return [
        Projection(
            name=f"p{at}",
            weight=random.standard_normal((5 + at, K), np.float32),
            bias=10 * random.standard_normal(5 + at, np.float32) if at % 2 == 0 else None,
            weight_format=weight_format,
        )
        for at, weight_format in enumerate(formats)
    ]


def stored(matrix: BlockQuantized) -> Float64:
    if matrix.floating:
        values = matrix.codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    else:
        zeros = 2 ** (matrix.bits - 1) if matrix.zero_points is None else matrix.zero_points.astype(np.float64)
        values = matrix.codes - np.repeat(np.broadcast_to(zeros, matrix.scales.shape), matrix.block, axis=1)[:, :K]
    return values * np.repeat(matrix.scales.astype(np.float64), matrix.block, axis=1)[:, :K]


def quantized_input(x: NDArray[np.float32], scale: float | None, inputs: str | None) -> Float64:
    if scale is None:
        return x.astype(np.float64)
    steps = x / np.float32(scale)
    if inputs == "int8":
        numbers = np.minimum(np.maximum(np.rint(steps), -127), 127)
    else:
        numbers = np.minimum(np.maximum(steps, -448), 448).astype(ml_dtypes.float8_e4m3fn)
    return numbers.astype(np.float64) * np.float64(np.float32(scale))


@pytest.mark.parametrize("inputs", [None, "int8", "fp8"])
@pytest.mark.parametrize(
    "forms",
    [(INT8, INT8, INT8), (FP8,), (INT4, INT8), (INT4, None), (None, FP8, INT8)],
    ids=lambda forms: str(len(forms)),
)
def test_outputs_and_error_are_their_definition(inputs: str | None, forms: tuple[WeightFormat | None, ...]) -> None:
    x, ones = some_inputs(), projections(*forms)
    found = quantize_group(x, ones, recipe(inputs))
    assert (found.input_scale is None) == (inputs is None)
    assert set(found.matrices) == {one.name for one in ones if one.weight_format is not None}
    quantized_x = quantized_input(x, found.input_scale, inputs)
    products, exact, expected = [], [], []
    for one in ones:
        weight = one.weight.astype(np.float64)
        products.append(quantized_x @ (weight if one.weight_format is None else stored(found.matrices[one.name])).T)
        exact.append(x.astype(np.float64) @ weight.T)
        expected.append(products[-1] + (0 if one.bias is None else one.bias))
    for made in (found(x), found.calibration_outputs()):
        assert made.dtype == np.float32
        np.testing.assert_allclose(made, np.concatenate(expected, axis=1), rtol=0, atol=1e-5 * np.abs(made).max())
    off = np.concatenate(products, axis=1) - np.concatenate(exact, axis=1)
    share = (off**2).sum() / (np.concatenate(exact, axis=1) ** 2).sum()
    assert found.relative_error == pytest.approx(share, rel=1e-3) and 0 < found.relative_error < 0.05


def test_inputs_are_rounded_half_to_even_and_clipped() -> None:
    identity = Projection(name="p", weight=np.eye(6, dtype=np.float32), bias=None, weight_format=None)

    def quantized(input_type: str, *x: float) -> list[float]:
        group = QuantizedGroup(
            projections=[identity],
            factors=None,
            inputs=np.empty((0, len(x)), np.float32),
            matrices={},
            input_type=input_type,
            input_scale=0.5,
            relative_error=0,
            zero_channels=0,
        )
        return list(group(np.array([x], np.float32))[0])

    assert quantized("int8", 0.25, 0.75, 1.25, -0.25, 1000, -1000) == [0, 1, 1, 0, 63.5, -63.5]
    # Above 16 the values of E4M3 lie 2 apart: 17 and 19 steps are ties.
    assert quantized("fp8", 8.5, 9.5, 8.75, -8.5, 1e6, -1e6) == [8, 10, 9, -8, 224, -224]


@pytest.mark.parametrize("inputs", [None, "int8", "fp8"])
def test_a_group_that_stays_in_float32_leaves_its_input_alone(inputs: str | None) -> None:
    x, ones = some_inputs(), projections(None, None)
    found = quantize_group(x, ones, recipe(inputs))
    assert (found.input_scale, found.matrices, found.relative_error) == (None, {}, 0.0)
    expected = [x @ ones[0].weight.T + ones[0].bias, x @ ones[1].weight.T]
    np.testing.assert_array_equal(found(x), np.concatenate(expected, axis=1))


@pytest.mark.parametrize("inputs", [None, "int8", "fp8"])
def test_gptq_lowers_the_error_on_correlated_inputs(inputs: str | None) -> None:
    """Against codes to nearest with the same scales."""
    random = np.random.default_rng(3)
    x = (random.normal(size=(300, 5)) @ random.normal(size=(5, K)) + 0.1 * random.normal(size=(300, K))).astype("f4")
    ones = projections(INT4)
    plain, made = (quantize_group(x, ones, recipe(inputs, gptq=gptq)) for gptq in (False, True))
    assert made.input_scale == plain.input_scale
    np.testing.assert_array_equal(made.matrices["p0"].scales, plain.matrices["p0"].scales)
    assert made.relative_error < (0.5 if inputs is None else 0.8) * plain.relative_error


def test_weights_are_calibrated_on_quantised_inputs() -> None:
    """An outlier makes the scale coarse: small inputs become zeros, which changes the Hessian."""
    x = some_inputs() * np.float32(0.01)
    x[:, 0] = np.random.default_rng(2).uniform(-50, 50, len(x))
    (one,) = projections(INT4)
    found = quantize_group(x, [one], recipe("int8"))
    quantized_x = quantized_input(x, found.input_scale, "int8")

    def calibrated_on(inputs: Float64) -> BlockQuantized:
        hessian = inputs.T @ inputs / len(inputs)
        policy = WeightedSearch(np.diag(hessian).astype(np.float32))
        grid = quantize_nearest(one.weight, INT4, policy)
        return Gptq(hessian.astype(np.float32), len(inputs)).quantize(one.weight, grid)

    made, expected, exact = found.matrices["p0"], calibrated_on(quantized_x), calibrated_on(x.astype(np.float64))
    assert (made.codes != expected.codes).mean() < 0.01 < (made.codes != exact.codes).mean()
    np.testing.assert_allclose(made.scales, expected.scales, rtol=1e-6)


def test_the_gram_matrix_is_the_mean_of_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "COLUMNS_PER_PRODUCT", 5)
    x = some_inputs()
    exact = x.astype(np.float64)
    np.testing.assert_allclose(gram_matrix(x), exact.T @ exact / len(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inputs", [None, "int8", "fp8"])
def test_an_input_of_zeros(inputs: str | None) -> None:
    found = quantize_group(np.zeros((9, K), np.float32), projections(INT4, INT8), recipe(inputs))
    assert found.relative_error == 0 and found.input_scale == (None if inputs is None else 1)
    assert np.isfinite(found(some_inputs())).all()


@pytest.mark.parametrize("inputs", ["int8", "fp8"])
def test_only_fp8_inputs_are_aligned_and_their_weights_divided(inputs: str) -> None:
    x, ones = some_inputs(), projections(FP8, None)
    plain, found = (quantize_group(x, ones, recipe(inputs), alignable=alignable) for alignable in (False, True))
    if inputs == "int8":
        assert found.factors is None and found.relative_error == plain.relative_error
        return
    assert found.factors is not None and found.input_scale == plain.input_scale
    for one, aligned in zip(ones, found.projections, strict=True):
        np.testing.assert_array_equal(aligned.weight, one.weight / found.factors)
    assert found.relative_error < plain.relative_error
    quantized_x = quantized_input(x * found.factors, found.input_scale, inputs)
    weight = ones[1].weight / found.factors.astype(np.float64)
    np.testing.assert_allclose(found(x)[:, 5:], quantized_x @ weight.T, rtol=0, atol=1e-5 * np.abs(found(x)).max())
