"""Smooth a layer: per-channel factors for every projection group's input, folded into the operator before it.

The norms take the factors of qkv and gate_up; v those of o, because attention mixes tokens and not channels; up those
of down. Knows no search: see smoothing.py.
"""

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.smoothing import SmoothingSearch, search_smoothing
from megrez.calibration.recipe import Recipe
from megrez.calibration.reference.decoder import GROUPS, NORMS, DecoderShape

Float32 = NDArray[np.float32]
PRODUCERS = NORMS | {"o": "self_attn.v_proj", "down": "mlp.up_proj"}


def smooth_layer(
    prefix: str,
    layer: dict[str, Float32],
    shape: DecoderShape,
    recipe: Recipe,
    inputs: dict[str, Float32],
) -> tuple[dict[str, Float32], dict[str, float | None]]:
    """The smoothed layer, equivalent to `layer` before quantisation, and each projection group's exponent.

    inputs: each group's on the calibration data, [tokens, K]; replaced by those in the smoothed layer.
    Tensors that did not change are the same objects. A group is smoothed only if all its projections are quantised.
    """
    smoothed, exponents = dict(layer), dict[str, float | None]()
    if recipe.smoothing is None:
        return smoothed, exponents
    for group in ("qkv", "gate_up", "o", "down"):
        formats = [recipe.weight_format(f"{prefix}{name}.weight") for name in GROUPS[group]]
        if formats[0] is None or None in formats:
            continue
        search = SmoothingSearch(
            method=recipe.smoothing,
            weight_format=formats[0],
            input_type=recipe.input_type,
            shared=_value_channels(shape) if group == "o" else None,
        )
        weight = np.concatenate([smoothed[f"{name}.weight"] for name in GROUPS[group]])
        found = search_smoothing(inputs[group], weight, search)
        exponents[group] = found.exponent
        if found.exponent is not None:
            _fold(smoothed, group, found.factors, shape)
            inputs[group] = inputs[group] / found.factors
    return smoothed, exponents


def _fold(layer: dict[str, Float32], group: str, factors: Float32, shape: DecoderShape) -> None:
    for name in GROUPS[group]:
        layer[f"{name}.weight"] = layer[f"{name}.weight"] * factors
    if group == "o":
        per_value = np.empty(shape.kv_heads * shape.head_dim, np.float32)
        per_value[_value_channels(shape)] = factors
        factors = per_value
    for kind in ("weight", "bias"):
        name = f"{PRODUCERS[group]}.{kind}"
        if name in layer:
            layer[name] = layer[name] / (factors[:, None] if layer[name].ndim == 2 else factors)


def _value_channels(shape: DecoderShape) -> NDArray[np.int64]:
    """Which channel of v [g d] each channel of o's input [h d] comes from."""
    channels = np.arange(shape.kv_heads * shape.head_dim).reshape(shape.kv_heads, 1, shape.head_dim)
    return np.repeat(channels, shape.heads // shape.kv_heads, axis=1).reshape(-1)
