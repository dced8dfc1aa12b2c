"""What rounding each point alone does to the model's answers, measured in one walk over its layers.

Every point gets a stream of hidden states of its own, exact but for that point's rounding, and all streams walk on
together: the weights are read once, and the KL divergence at the end is the whole model's, not a layer's.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.layer_smoothing import smooth_layer
from megrez.calibration.layer import projection_of
from megrez.calibration.recipe import Recipe
from megrez.calibration.reference.decoder import NORMS, POINTS, Linear, forward, linear_of
from megrez.calibration.reference.fidelity import log_softmax
from megrez.calibration.reference.model import Model
from megrez.calibration.rounding import Rounded, round_point

Float32 = NDArray[np.float32]
# Positions whose logits are held at a time, in float64: 126 MB at vocabulary 122880.
CHUNK = 128


def measure_sensitivity(
    model: Model,
    tokens: NDArray[np.int64],
    recipe: Recipe,
    progress: Callable[[int], None] = lambda layers: None,
) -> dict[str, float]:
    """Mean KL(exact || rounded), in nats, of rounding each point alone: by "model.layers.0.qkv" and so on.

    tokens: [S, T], both learned from and measured on: the figures rank points, they do not promise a result. Memory
    grows with layers * tokens: a few hundred tokens are enough.
    """
    exact = model.embed(tokens)
    perturbed: dict[str, Float32] = {}
    for index in range(model.layers):
        layer = model.layer(index)
        linear, window = linear_of(layer), model.windows[index]
        started = dict(_perturb(model, index, layer, exact, recipe))
        for name, x in perturbed.items():
            perturbed[name] = forward(x, layer, model.shape, window, linear)
        perturbed |= started
        exact = forward(exact, layer, model.shape, window, linear)
        progress(index + 1)
    return _divergences(model, exact, perturbed)


def _perturb(
    model: Model, index: int, layer: dict[str, Float32], exact: Float32, recipe: Recipe
) -> Iterator[tuple[str, Float32]]:
    """For each point that the recipe rounds: the layer's output with only that point rounded."""
    prefix, window = model.prefix(index), model.windows[index]
    inputs: dict[str, Float32] = {}
    exact_linear = linear_of(layer)

    def recording(point: str, x: Float32) -> Float32:
        inputs[point] = x
        return exact_linear(point, x)

    forward(exact, layer, model.shape, window, recording)
    smooth, _ = smooth_layer(prefix, layer, model.shape, recipe, inputs)
    smooth_linear = linear_of(smooth)
    if recipe.smoothing is not None:
        exact_linear = smooth_linear
        forward(exact, smooth, model.shape, window, recording)
    for point, names in POINTS.items():
        projections = [projection_of(prefix, smooth, name, recipe) for name in names]
        if any(one.form is not None for one in projections):
            rounded = round_point(inputs[point], projections, recipe, free=point in NORMS)
            only = _only(point, rounded, smooth_linear)
            yield prefix + point, forward(exact, smooth, model.shape, window, only)


def _only(point: str, rounded: Rounded, exact: Linear) -> Linear:
    return lambda asked, x: rounded(x) if asked == point else exact(asked, x)


def _divergences(model: Model, exact: Float32, perturbed: dict[str, Float32]) -> dict[str, float]:
    head = model.head()
    flat = exact.reshape(-1, exact.shape[-1])
    totals = dict.fromkeys(perturbed, 0.0)
    for start in range(0, len(flat), CHUNK):
        part = slice(start, start + CHUNK)
        truth = log_softmax(head(flat[part]))
        weights = np.exp(truth)
        for name, hidden in perturbed.items():
            found = log_softmax(head(hidden.reshape(flat.shape)[part]))
            totals[name] += float((weights * (truth - found)).sum())
    return {name: total / len(flat) for name, total in totals.items()}
