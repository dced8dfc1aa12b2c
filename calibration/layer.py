"""Calibrate one layer: smooth it, choose the scales of its inputs, round its weights; knows no file and no other layer.

Two streams of hidden states run through it side by side: the exact model's, and the one of the model rounded so far,
which is what the layer will meet. Smoothing is judged on the first, scales and weights on the second.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.caches import CacheObservers
from megrez.calibration.decoder import POINTS, DecoderShape, forward, linear_of
from megrez.calibration.layer_smoothing import smooth_layer
from megrez.calibration.recipe import Calibrated, Point, Recipe
from megrez.calibration.rounding import Projection, round_point

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """Hidden states [S, T, H] of the exact model and of the rounded one; the first `learn` samples are learned from."""

    exact: Float32
    rounded: Float32
    learn: int


def calibrate_layer(
    prefix: str, layer: dict[str, Float32], shape: DecoderShape, window: int | None, recipe: Recipe, streams: Streams
) -> tuple[Streams, Calibrated]:
    """The streams behind the layer, and what was found for it. prefix: "model.layers.0."; layer: its tensors."""
    learn = streams.learn * streams.exact.shape[1]
    found = Calibrated()
    inputs: dict[str, Float32] = {}
    exact_linear = linear_of(layer)
    caches = CacheObservers()
    costs = token_costs(streams.exact[: streams.learn])

    def recording(point: str, x: Float32) -> Float32:
        inputs[point] = x[:learn]
        return exact_linear(point, x)

    exact = forward(streams.exact, layer, shape, window, recording)
    smooth, exponents = smooth_layer(prefix, layer, shape, recipe, inputs, costs)
    inputs.clear()

    def rounding(point: str, x: Float32) -> Float32:
        projections = [_projection(prefix, smooth, name, recipe) for name in POINTS[point]]
        rounded = round_point(x[:learn], costs[point], projections, recipe)
        found.matrices |= rounded.matrices
        found.points[prefix + point] = Point(
            exponent=exponents.get(point), input_scale=rounded.input_scale, error=rounded.error
        )
        return rounded(x)

    rounded = forward(streams.rounded, smooth, shape, window, rounding, caches.update)
    found.caches = caches.scales(prefix)
    found.tensors = {
        prefix + name: tensor
        for name, tensor in smooth.items()
        if tensor is not layer[name] and prefix + name not in found.matrices
    }
    return Streams(exact=exact, rounded=rounded, learn=streams.learn), found


def token_costs(hidden: Float32) -> dict[str, Float32]:
    """What a squared error of each token costs at each point: [tokens], 1 on average, from hidden states [S, T, H].

    What o, gate, up and down make is added to the hidden state, which the next norm divides by its size: an error there
    counts as a share of it. Hidden states of a model's first token can be a thousand times those of others, and would
    else decide alone. Its key and value are read by all tokens, so errors of q, k and v count as they are.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    power = np.einsum("nh,nh->n", flat, flat)
    usual = max(float(np.median(power)), float(np.finfo(np.float32).tiny))
    shares = np.float32(usual) / np.maximum(power, np.float32(usual / 10))  # no token is worth more than ten others
    shares /= max(float(shares.mean()), float(np.finfo(np.float32).tiny))
    equal = np.ones_like(shares)
    return {point: equal if point == "qkv" else shares for point in POINTS}


def _projection(prefix: str, layer: dict[str, Float32], name: str, recipe: Recipe) -> Projection:
    full = f"{prefix}{name}.weight"
    return Projection(name=full, weight=layer[f"{name}.weight"], bias=layer.get(f"{name}.bias"), form=recipe.form(full))
