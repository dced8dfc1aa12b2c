"""Calibrate a model layer by layer: one layer's weights in memory at a time; knows no file format and no target."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.layer import Streams, calibrate_layer
from megrez.calibration.recipe import Calibrated, Point, Recipe
from megrez.calibration.reference.decoder import forward, linear_of
from megrez.calibration.reference.fidelity import measure_fidelity
from megrez.calibration.reference.hidden_session import HiddenSession
from megrez.calibration.reference.model import Head, Model
from megrez.calibration.results.store import Store
from megrez.calibration.rounding import Projection, Rounded, round_point
from megrez.calibration.weights.asymmetric import Exact
from megrez.runtime.manifest import Fidelity

Float32 = NDArray[np.float32]
Tokens = NDArray[np.int64]
LM_HEAD = "lm_head"


@dataclass(frozen=True, slots=True, kw_only=True)
class Walked:
    """Hidden states behind the last layer, of the samples that were not learned from: [S, T, H].

    fidelity: of the rounded model to the exact one on these samples; None where there are none.
    """

    exact: Float32
    fidelity: Fidelity | None


def calibrate(
    model: Model,
    tokens: Tokens,
    learn: int,
    recipe: Recipe,
    store: Store,
    progress: Callable[[int], None] = lambda layers: None,
) -> Walked:
    """Calibrate on the first `learn` samples of tokens [S, T]; the others go along to measure what came of it.

    `progress` is told how many of the model's layers are done. What a killed run finished is taken from `store`.
    """
    start = model.embed(tokens)
    streams = store.resume(Streams(exact=start, rounded=start, learn=learn))
    del start
    progress(min(store.progress.layers, model.layers))
    for layer in range(store.progress.layers, model.layers):
        streams, found = calibrate_layer(
            model.prefix(layer), model.layer(layer), model.shape, model.windows[layer], recipe, streams
        )
        store.save(found, streams)
        progress(layer + 1)
    head = model.head()
    rounded_head = _round_head(model.head_name, head, recipe, streams)
    if store.progress.layers == model.layers and rounded_head is not None:
        store.save(_found_for_head(rounded_head), streams)
    return Walked(exact=streams.exact[learn:], fidelity=_fidelity(tokens[learn:], streams, head, rounded_head))


def _round_head(name: str, head: Head, recipe: Recipe, streams: Streams) -> Rounded | None:
    """The head, where it is rounded. Its input is not smoothed: a tied embedding would have to be stored twice."""
    form = recipe.form(name)
    if form is None:
        return None

    def inputs(stream: Float32) -> Float32:
        return head.inputs(stream[: streams.learn].reshape(-1, stream.shape[-1]))

    projection = Projection(name=name, weight=head.weight, bias=None, form=form)
    return round_point(inputs(streams.rounded), [projection], recipe, exact=Exact(inputs=inputs(streams.exact)))


def _found_for_head(rounded: Rounded) -> Calibrated:
    point = Point(exponent=None, input_scale=rounded.input_scale, error=rounded.error, zeros=rounded.zeros)
    return Calibrated(points={LM_HEAD: point}, matrices=rounded.matrices)


def _fidelity(tokens: Tokens, streams: Streams, head: Head, rounded_head: Rounded | None) -> Fidelity | None:
    if tokens.size == 0:
        return None
    exact, rounded = (hidden[streams.learn :] for hidden in (streams.exact, streams.rounded))
    rounded_head = rounded_head and rounded_head.dequantized()

    def logits(hidden: Float32) -> Float32:
        return head(hidden) if rounded_head is None else rounded_head(head.inputs(hidden))

    window, vocab_size = tokens.shape[1], len(head.weight)
    flat = tokens.size, exact.shape[-1]
    return measure_fidelity(
        HiddenSession(rounded.reshape(flat), logits, window=window, vocab_size=vocab_size),
        HiddenSession(exact.reshape(flat), head, window=window, vocab_size=vocab_size),
        tokens.reshape(-1),
        window=window,
    )


def walk_exact(model: Model, tokens: Tokens, progress: Callable[[int], None] = lambda layers: None) -> Float32:
    """Hidden states [S, T, H] behind the exact model's last layer; one layer's weights in memory at a time."""
    x = model.embed(tokens)
    for index in range(model.layers):
        layer = model.layer(index)
        x = forward(x, layer, model.shape, model.windows[index], linear_of(layer))
        progress(index + 1)
    return x
