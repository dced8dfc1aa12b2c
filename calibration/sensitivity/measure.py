"""A model's sensitivity to quantising each projection group alone; knows no target and no budget.

Every group has its own stream of hidden states, with only that group quantised, and all streams pass through the
layers together: weights are read once, and the KL divergence at the end is the whole model's, not a layer's.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.layer_smoothing import smooth_layer
from megrez.calibration.layer import projection_of
from megrez.calibration.parallel import one_blas_thread
from megrez.calibration.projections import QuantizedGroup, quantize_group
from megrez.calibration.recipe import Recipe
from megrez.calibration.reference.decoder import GROUPS, NORMS, Linear, forward, linear_of
from megrez.calibration.reference.fidelity import log_softmax
from megrez.calibration.reference.model import Model

Float32 = NDArray[np.float32]
# Positions whose logits are in memory at a time, in float64: 126 MB at vocabulary 122880.
STEP_POSITIONS = 128


@one_blas_thread()
def measure_sensitivity(
    model: Model,
    tokens: NDArray[np.int64],
    recipe: Recipe,
    progress: Callable[[int], None] = lambda layers: None,
) -> dict[str, float]:
    """Mean KL(reference || quantised), in nats, of quantising each group alone: by "model.layers.0.qkv" and so on.

    tokens: [S, T], for calibration and measurement alike: the figures rank groups, they do not predict a result.
    Memory grows with layers * tokens: a few hundred tokens are enough.
    """
    reference = model.embed(tokens)
    perturbed: dict[str, Float32] = {}
    for index in range(model.layers):
        layer = model.layer(index)
        linear, window = linear_of(layer), model.windows[index]
        started = dict(_perturb(model, index, layer, reference, recipe))
        for name, x in perturbed.items():
            perturbed[name] = forward(x, layer, model.shape, window, linear)
        perturbed |= started
        reference = forward(reference, layer, model.shape, window, linear)
        progress(index + 1)
    return _divergences(model, reference, perturbed)


def _perturb(
    model: Model, index: int, layer: dict[str, Float32], reference: Float32, recipe: Recipe
) -> Iterator[tuple[str, Float32]]:
    """For each group that the recipe quantises: the layer's output with only that group quantised."""
    prefix, window = model.prefix(index), model.windows[index]
    inputs: dict[str, Float32] = {}
    reference_linear = linear_of(layer)

    def record(group: str, x: Float32) -> Float32:
        inputs[group] = x
        return reference_linear(group, x)

    forward(reference, layer, model.shape, window, record)
    smoothed, _ = smooth_layer(prefix, layer, model.shape, recipe, inputs)
    smoothed_linear = linear_of(smoothed)
    if recipe.smoothing is not None:
        reference_linear = smoothed_linear
        forward(reference, smoothed, model.shape, window, record)
    for group, names in GROUPS.items():
        projections = [projection_of(prefix, smoothed, name, recipe) for name in names]
        if any(one.weight_format is not None for one in projections):
            quantized = quantize_group(inputs[group], projections, recipe, alignable=group in NORMS)
            linear = _only(group, quantized, smoothed_linear)
            yield prefix + group, forward(reference, smoothed, model.shape, window, linear)


def _only(group: str, quantized: QuantizedGroup, others: Linear) -> Linear:
    return lambda name, x: quantized(x) if name == group else others(name, x)


def _divergences(model: Model, reference: Float32, perturbed: dict[str, Float32]) -> dict[str, float]:
    head = model.lm_head()
    flat = reference.reshape(-1, reference.shape[-1])
    totals = dict.fromkeys(perturbed, 0.0)
    for start in range(0, len(flat), STEP_POSITIONS):
        part = slice(start, start + STEP_POSITIONS)
        expected = log_softmax(head(flat[part]))
        probabilities = np.exp(expected)
        for name, hidden in perturbed.items():
            found = log_softmax(head(hidden.reshape(flat.shape)[part]))
            totals[name] += float((probabilities * (expected - found)).sum())
    return {name: total / len(flat) for name, total in totals.items()}
