"""Smoothing leaves a layer's function as it is, and lowers its quantisation error."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from megrez.calibration.activations.layer_smoothing import smooth_layer
from megrez.calibration.activations.smoothing import SmoothingSearch, search_smoothing
from megrez.calibration.projections import Projection, quantize_group
from megrez.calibration.recipe import Recipe
from megrez.calibration.reference.decoder import GROUPS, Layer, forward, linear_of
from megrez.calibration.reference.model import Model
from megrez.engines.weight_formats import WeightFormat
from tests.calibration_models import open_model
from tests.conftest import Make

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
INT8 = WeightFormat(bits=8, block=None, symmetric=True)
INT4 = WeightFormat(bits=4, block=16, symmetric=True)
TINY = {"hidden": 48, "heads": 4, "kv_heads": 2, "head_dim": 16, "intermediate": 80}
PREFIX, TOKENS = "model.layers.1.", 30
# What is folded into what: with these four and the projections themselves, nothing else changes.
PRODUCERS = {
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "self_attn.v_proj.bias",
    "mlp.up_proj.bias",
}
RECIPES = {
    "smoothquant": {"smoothing": "smoothquant", "input_type": "int8", "weight_format": INT8},
    "awq": {"smoothing": "awq", "input_type": None, "weight_format": INT4},
}
recipes = pytest.mark.parametrize("name", RECIPES)


def recipe(name: str, quantizes: Callable[[str], bool] = lambda name: True) -> Recipe:
    setting: dict[str, Any] = RECIPES[name]
    return Recipe(
        smoothing=setting["smoothing"],
        gptq=False,
        input_type=setting["input_type"],
        weight_format=lambda one: setting["weight_format"] if quantizes(one) else None,
    )


def with_outliers(model: Model) -> dict[str, Float32]:
    """The layer with an outlier channel in every input; the weights that read it are as small as the others are."""
    layer = {name: tensor.copy() for name, tensor in model.layer(1).items()}
    layer["input_layernorm.weight"][5] *= 60
    layer["post_attention_layernorm.weight"][7] *= 60
    layer["self_attn.v_proj.weight"][3] *= 60
    layer["mlp.up_proj.weight"][9] *= 60
    return layer


def run(layer: Layer, model: Model) -> tuple[Float32, dict[str, Float32]]:
    """The layer's output, and the inputs of each group."""
    x = np.random.default_rng(0).standard_normal((2, TOKENS, 48)).astype(np.float32)
    inputs: dict[str, Float32] = {}
    reference = linear_of(layer)

    def linear(group: str, x: Float32) -> Float32:
        inputs[group] = x
        return reference(group, x)

    return forward(x, layer, model.shape, model.windows[1], linear), inputs


@recipes
@pytest.mark.parametrize(
    "shape", [{"biases": True}, {"kv_heads": 1}, {"family": "qwen2"}, {"family": "qwen3", "biases": True}], ids=str
)
def test_the_layer_computes_what_it_did(name: str, shape: dict[str, Any], checkpoint_of: Make) -> None:
    model = open_model(checkpoint_of(**{**TINY, **shape}), TOKENS)
    layer = with_outliers(model)
    expected, inputs = run(layer, model)
    smooth, exponents = smooth_layer(PREFIX, layer, model.shape, recipe(name), inputs)
    found, smoothed = run(smooth, model)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert set(exponents) == set(GROUPS) and all(exponents.values())
    projections = {f"{one}.weight" for ones in GROUPS.values() for one in ones}
    changed = {one for one in layer if smooth[one] is not layer[one]}
    assert changed == (projections | PRODUCERS) & set(layer)
    for one in changed:
        assert smooth[one].dtype == np.float32 and np.abs(smooth[one] / layer[one] - 1).max() > 0.1
    for group, x in inputs.items():
        assert not np.array_equal(smoothed[group], x)


@recipes
def test_an_outlier_channel_costs_less(name: str, checkpoint_of: Make) -> None:
    model = open_model(checkpoint_of(**TINY), TOKENS)
    layer = with_outliers(model)
    _, inputs = run(layer, model)

    def error(layer: Layer, x: Float32, group: str) -> float:
        ones = [
            Projection(name=one, weight=layer[f"{one}.weight"], bias=None, weight_format=weight_format)
            for one in GROUPS[group]
        ]
        return quantize_group(x, ones, recipe(name)).relative_error

    weight_format = recipe(name).weight_format("")
    for group, names in GROUPS.items():
        only = recipe(name, lambda one, names=names: one.removeprefix(PREFIX).removesuffix(".weight") in names)
        smooth_inputs = dict(inputs)
        smooth, _ = smooth_layer(PREFIX, layer, model.shape, only, smooth_inputs)
        _, smoothed = run(smooth, model)
        atol = 1e-4 * np.abs(smoothed[group]).max()
        np.testing.assert_allclose(smooth_inputs[group], smoothed[group], rtol=1e-3, atol=atol)
        assert error(smooth, smoothed[group], group) < (0.7 if name == "smoothquant" else 0.9) * error(
            layer, inputs[group], group
        )
        if name == "smoothquant":
            before, after = (np.abs(one[group]).max(axis=0) for one in (inputs, smoothed))
            assert after.max() / np.median(after) < 0.5 * before.max() / np.median(before)


def test_heads_that_share_a_value_share_its_factors(checkpoint_of: Make) -> None:
    model = open_model(checkpoint_of(**TINY), TOKENS)
    layer = with_outliers(model)
    _, inputs = run(layer, model)
    o, v = "self_attn.o_proj.weight", "self_attn.v_proj.weight"
    only = recipe("smoothquant", lambda name: name.endswith(o))
    smooth, exponents = smooth_layer(PREFIX, layer, model.shape, only, inputs)
    assert list(exponents) == ["o"]
    factors = (smooth[o] / layer[o]).astype(np.float64)
    np.testing.assert_allclose(factors, np.broadcast_to(factors[:1], factors.shape), rtol=1e-5)
    by_head = factors[0].reshape(2, 2, 16)  # [g, heads of each, d]
    np.testing.assert_allclose(by_head[:, 0], by_head[:, 1], rtol=1e-5)
    assert np.abs(by_head[0, 0] / by_head[1, 0] - 1).max() > 0.1
    value_factors = (layer[v] / smooth[v]).mean(axis=1)
    np.testing.assert_allclose(value_factors, by_head[:, 0].reshape(-1), rtol=1e-5)
    assert value_factors.argmax() == 3
    assert {one for one in layer if smooth[one] is not layer[one]} == {o, v}


@recipes
def test_a_group_with_a_projection_that_stays_in_float32_is_left(name: str, checkpoint_of: Make) -> None:
    model = open_model(checkpoint_of(**TINY), TOKENS)
    layer = with_outliers(model)
    _, inputs = run(layer, model)
    some = recipe(name, lambda one: not one.endswith(("k_proj.weight", "down_proj.weight")))
    smooth, exponents = smooth_layer(PREFIX, layer, model.shape, some, inputs)
    assert set(exponents) == {"o", "gate_up"}
    kept = ("input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight", "mlp.down_proj.weight")
    assert all(smooth[one] is layer[one] for one in kept)


def test_no_smoothing_changes_nothing(checkpoint_of: Make) -> None:
    model = open_model(checkpoint_of(**TINY), TOKENS)
    layer = with_outliers(model)
    plain = Recipe(smoothing=None, gptq=False, input_type="int8", weight_format=lambda name: INT8)
    smooth, exponents = smooth_layer(PREFIX, layer, model.shape, plain, {})
    assert exponents == {} and all(smooth[one] is tensor for one, tensor in layer.items())


def factors_of(x: Float64, weight: Float64, exponent: float, method: str) -> Float64:
    """SmoothQuant's and AWQ's formulas."""
    if method == "awq":
        return np.abs(x).mean(axis=0) ** exponent
    return np.abs(x).max(axis=0) ** exponent / np.abs(weight).max(axis=0) ** (1 - exponent)


def error_of(x: Float64, weight: Float64, factors: Float64) -> float:
    """Of int8 weights per channel, the inputs in float32."""
    scaled = weight * factors
    scale = np.abs(scaled).max(axis=1, keepdims=True) / 127
    return float((((x / factors) @ (np.rint(scaled / scale) * scale).T - x @ weight.T) ** 2).sum())


@pytest.mark.parametrize("method", ["smoothquant", "awq"])
def test_the_exponent_is_the_one_with_the_least_error(method: str) -> None:
    taken = set()
    for seed in range(6):
        random = np.random.default_rng(seed)
        x = random.standard_normal((50, 24)) * 10.0 ** random.normal(0, 0.15 * seed, 24)
        weight = random.standard_normal((20, 24)) * 10.0 ** random.normal(0, 0.3, 24)
        tried: dict[float | None, float] = {None: error_of(x, weight, np.ones(24))}
        for tenths in range(0 if method == "smoothquant" else 1, 11):
            tried[tenths / 10] = error_of(x, weight, factors_of(x, weight, tenths / 10, method))
        search = SmoothingSearch(method=method, weight_format=INT8, input_type=None)
        found = search_smoothing(x.astype(np.float32), weight.astype(np.float32), search)
        assert found.exponent == min(tried, key=lambda one: tried[one])
        taken.add(found.exponent)
        if found.exponent is not None:
            ratio = found.factors / factors_of(x, weight, found.exponent, method)
            np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)  # a factor common to all channels means nothing
    assert len(taken) > 1


def test_nothing_to_gain_is_no_smoothing() -> None:
    """Weights that are int8 already are quantised to themselves."""
    random = np.random.default_rng(0)
    weight = random.integers(-127, 128, (10, 16)).astype(np.float32)
    weight[:, 0] = 127
    x = random.standard_normal((20, 16)).astype(np.float32)
    for method in ("smoothquant", "awq"):
        found = search_smoothing(x, weight, SmoothingSearch(method=method, weight_format=INT8, input_type=None))
        assert found.exponent is None and (found.factors == 1).all()


@recipes
def test_dead_channels_keep_factors_finite(name: str) -> None:
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((20, 16)).astype(np.float32), random.standard_normal((9, 16)).astype(np.float32)
    x[:, 4], x[:, 6], weight[:, 8], weight[2] = 0, 100, 0, 0
    search = SmoothingSearch(method=name, weight_format=INT8, input_type="int8")
    found = search_smoothing(x, weight, search)
    assert found.exponent is not None and np.isfinite(found.factors).all() and (found.factors > 0).all()
    zeros = search_smoothing(np.zeros_like(x), weight, search)
    assert zeros.exponent is None
