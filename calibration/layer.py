"""Calibrate one layer: smooth it, choose the scales of its inputs, round its weights; knows no file and no other layer.

Two streams of hidden states run through it side by side: the exact model's, and the one of the model rounded so far,
which is what the layer will meet. Smoothing is judged on the first, scales and weights on the second; GPTQ leads the
second back to the first.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.caches import CacheObservers
from megrez.calibration.activations.layer_smoothing import smooth_layer
from megrez.calibration.recipe import Calibrated, Point, Recipe
from megrez.calibration.reference.decoder import NORMS, POINTS, DecoderShape, forward, linear_of
from megrez.calibration.rounding import Projection, round_point
from megrez.calibration.weights.asymmetric import Exact
from megrez.runtime.errors import CheckpointError

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """Hidden states [S, T, H] of the exact model and of the rounded one; the first `learn` samples are learned from."""

    exact: Float32
    rounded: Float32
    learn: int


class _Aim:
    """What the exact model has at each point, on the tokens that are learned from; see Exact.

    learn: how many these are. inputs: what each point reads, until it is asked for.
    """

    def __init__(self, streams: Streams) -> None:
        self.learn = streams.learn * streams.exact.shape[1]
        self.inputs: dict[str, Float32] = {}
        apart = streams.exact[: streams.learn] - streams.rounded[: streams.learn]
        self._missing = {"o": apart.reshape(self.learn, -1)}

    def record(self, point: str, x: Float32, y: Float32) -> None:
        """The exact model reads x at the point and makes y of it; o's y joins the sum that down's will join."""
        self.inputs[point] = x[: self.learn]
        if point == "o":
            self._missing["down"] = self._missing["o"] + y[: self.learn]

    def join(self, point: str, y: Float32) -> None:
        """The rounded model makes y at the point."""
        if point == "o":
            self._missing["down"] -= y[: self.learn]

    def at(self, point: str) -> Exact:
        return Exact(inputs=self.inputs.pop(point), missing=self._missing.get(point))


def calibrate_layer(
    prefix: str, layer: dict[str, Float32], shape: DecoderShape, window: int | None, recipe: Recipe, streams: Streams
) -> tuple[Streams, Calibrated]:
    """The streams behind the layer, and what was found for it. prefix: "model.layers.0."; layer: its tensors.

    Raises CheckpointError where the exact model's hidden states overflow.
    """
    aim, found, caches = _Aim(streams), Calibrated(), CacheObservers()
    exact_linear = linear_of(layer)

    def recording(point: str, x: Float32) -> Float32:
        y = exact_linear(point, x)
        aim.record(point, x, y)
        return y

    exact = forward(streams.exact, layer, shape, window, recording)
    if not np.isfinite(exact).all():
        raise CheckpointError(f"{prefix.rstrip('.')} makes of the text what is not finite: repair the checkpoint")
    smooth, exponents = smooth_layer(prefix, layer, shape, recipe, aim.inputs)

    def rounding(point: str, x: Float32) -> Float32:
        projections = [projection_of(prefix, smooth, name, recipe) for name in POINTS[point]]
        rounded = round_point(x[: aim.learn], projections, recipe, free=point in NORMS, exact=aim.at(point))
        if rounded.factors is not None:
            norm = f"{NORMS[point]}.weight"
            smooth[norm] = smooth[norm] * rounded.factors
            smooth.update({f"{n}.weight": p.weight for n, p in zip(POINTS[point], rounded.projections, strict=True)})
        found.matrices |= rounded.matrices
        found.points[prefix + point] = Point(
            exponent=exponents.get(point),
            input_scale=rounded.input_scale,
            error=rounded.error,
            zeros=rounded.zeros,
        )
        y = rounded(x)
        aim.join(point, y)
        return y

    rounded = forward(streams.rounded, smooth, shape, window, rounding, caches.update)
    found.caches = caches.scales(prefix)
    found.tensors = {
        prefix + name: tensor
        for name, tensor in smooth.items()
        if tensor is not layer[name] and prefix + name not in found.matrices
    }
    return Streams(exact=exact, rounded=rounded, learn=streams.learn), found


def projection_of(prefix: str, layer: dict[str, Float32], name: str, recipe: Recipe) -> Projection:
    full = f"{prefix}{name}.weight"
    return Projection(name=full, weight=layer[f"{name}.weight"], bias=layer.get(f"{name}.bias"), form=recipe.form(full))
