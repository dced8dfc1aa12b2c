"""Smooth all of a layer: factors for every input, folded into what makes the input, at no cost to the graph.

The norms make what q, k, v, gate and up read; v makes what o reads, through an attention that mixes tokens and not
channels; up makes what down reads, as a factor.
"""

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.smoothing import Setting, search_smoothing
from megrez.calibration.recipe import Recipe
from megrez.calibration.reference.decoder import NORMS, POINTS, DecoderShape

Float32 = NDArray[np.float32]
PRODUCERS = NORMS | {"o": "self_attn.v_proj", "down": "mlp.up_proj"}


def smooth_layer(
    prefix: str,
    layer: dict[str, Float32],
    shape: DecoderShape,
    recipe: Recipe,
    inputs: dict[str, Float32],
) -> tuple[dict[str, Float32], dict[str, float | None]]:
    """The smoothed layer, equal to `layer` until it is rounded, and each point's exponent.

    inputs: what each point reads on the calibration text, [tokens, K]; afterwards, what it reads in the smoothed layer.
    Tensors that did not change are the same objects. A point stays as it is unless all its projections are rounded.
    """
    smooth, exponents = dict(layer), dict[str, float | None]()
    if recipe.smoothing is None:
        return smooth, exponents
    for point in ("qkv", "gate_up", "o", "down"):
        forms = [recipe.form(f"{prefix}{name}.weight") for name in POINTS[point]]
        if forms[0] is None or None in forms:
            continue
        setting = Setting(
            method=recipe.smoothing,
            form=forms[0],
            inputs=recipe.inputs,
            shared=_value_channels(shape) if point == "o" else None,
        )
        weight = np.concatenate([smooth[f"{name}.weight"] for name in POINTS[point]])
        found = search_smoothing(inputs[point], weight, setting)
        exponents[point] = found.exponent
        if found.exponent is not None:
            _fold(smooth, point, found.factors, shape)
            inputs[point] = inputs[point] / found.factors
    return smooth, exponents


def _fold(layer: dict[str, Float32], point: str, factors: Float32, shape: DecoderShape) -> None:
    for name in POINTS[point]:
        layer[f"{name}.weight"] = layer[f"{name}.weight"] * factors
    if point == "o":
        per_value = np.empty(shape.kv_heads * shape.head_dim, np.float32)
        per_value[_value_channels(shape)] = factors
        factors = per_value
    for kind in ("weight", "bias"):
        name = f"{PRODUCERS[point]}.{kind}"
        if name in layer:
            layer[name] = layer[name] / (factors[:, None] if layer[name].ndim == 2 else factors)


def _value_channels(shape: DecoderShape) -> NDArray[np.int64]:
    """Which channel of v [g d] makes each channel of o's input [h d]."""
    channels = np.arange(shape.kv_heads * shape.head_dim).reshape(shape.kv_heads, 1, shape.head_dim)
    return np.repeat(channels, shape.heads // shape.kv_heads, axis=1).reshape(-1)
