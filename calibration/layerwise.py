"""Calibrate a model layer by layer: one layer's weights in memory at a time; knows no file format and no target."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.layer import Streams, calibrate_layer
from megrez.calibration.parallel import one_blas_thread
from megrez.calibration.projections import Projection, QuantizedGroup, quantize_group
from megrez.calibration.recipe import Calibrated, Recipe
from megrez.calibration.reference.decoder import LM_HEAD_GROUP, forward, linear_of
from megrez.calibration.reference.fidelity import measure_fidelity
from megrez.calibration.reference.hidden_session import HiddenSession
from megrez.calibration.reference.model import LMHead, Model
from megrez.calibration.results.store import Store
from megrez.calibration.weights.asymmetric import FullPrecision
from megrez.runtime.manifest import Fidelity

Float32 = NDArray[np.float32]
Tokens = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutResult:
    """reference: the full-precision model's hidden states after the last layer, of the held-out samples, [S, T, H].

    fidelity: of the quantised model on these samples; None where there are none, or where it was not simulated.
    """

    reference: Float32
    fidelity: Fidelity | None


def calibrate_layers(
    model: Model,
    tokens: Tokens,
    calibration_samples: int,
    recipe: Recipe,
    store: Store,
    progress: Callable[[int], None] = lambda layers: None,
    *,
    simulate: bool = True,
) -> HeldOutResult:
    """Calibrate on the first `calibration_samples` rows of tokens [S, T]; `simulate`: measure fidelity on the others.

    `progress` is called with the number of layers done. Layers that an interrupted run finished are taken from `store`.
    """
    embedded = model.embed(tokens)
    read_by_quantized = embedded if simulate else embedded[:calibration_samples]
    streams = store.resume(
        Streams(reference=embedded, quantized=read_by_quantized, calibration_samples=calibration_samples),
    )
    del embedded, read_by_quantized
    progress(min(store.progress.layers, model.layers))
    for layer in range(store.progress.layers, model.layers):
        streams, calibrated = calibrate_layer(
            model.prefix(layer), model.layer(layer), model.shape, model.windows[layer], recipe, streams
        )
        store.save(calibrated, streams)
        progress(layer + 1)
    head = model.lm_head()
    quantized_head = _quantize_head(model.lm_head_weight, head, recipe, streams, overwrite=not simulate)
    if store.progress.layers == model.layers and quantized_head is not None:
        groups = {LM_HEAD_GROUP: quantized_head.result(None)}
        store.save(Calibrated(groups=groups, matrices=quantized_head.matrices), streams)
    return HeldOutResult(
        reference=streams.reference[calibration_samples:],
        fidelity=_fidelity(tokens[calibration_samples:], streams, head, quantized_head),
    )


@one_blas_thread()
def _quantize_head(
    name: str, head: LMHead, recipe: Recipe, streams: Streams, *, overwrite: bool
) -> QuantizedGroup | None:
    """None where it stays in float32. Its input is not smoothed: a tied embedding would have to be stored twice.

    overwrite: the head's weight may be overwritten.
    """
    weight_format = recipe.weight_format(name)
    if weight_format is None:
        return None

    def inputs(stream: Float32) -> Float32:
        return head.inputs(stream[: streams.calibration_samples].reshape(-1, stream.shape[-1]))

    projection = Projection(name=name, weight=head.weight, bias=None, weight_format=weight_format)
    reference = FullPrecision(inputs=inputs(streams.reference))
    return quantize_group(inputs(streams.quantized), [projection], recipe, reference=reference, overwrite=overwrite)


def _fidelity(tokens: Tokens, streams: Streams, head: LMHead, quantized_head: QuantizedGroup | None) -> Fidelity | None:
    if tokens.size == 0 or len(streams.quantized) == streams.calibration_samples:
        return None
    reference, quantized = (stream[streams.calibration_samples :] for stream in (streams.reference, streams.quantized))
    quantized_head = quantized_head and quantized_head.dequantized()

    def logits(hidden: Float32) -> Float32:
        return head(hidden) if quantized_head is None else quantized_head(head.inputs(hidden))

    window, vocab_size = tokens.shape[1], len(head.weight)
    flat = tokens.size, reference.shape[-1]
    return measure_fidelity(
        HiddenSession(quantized.reshape(flat), logits, window=window, vocab_size=vocab_size),
        HiddenSession(reference.reshape(flat), head, window=window, vocab_size=vocab_size),
        tokens.reshape(-1),
        window=window,
    )


@one_blas_thread()
def reference_hidden_states(
    model: Model, tokens: Tokens, progress: Callable[[int], None] = lambda layers: None
) -> Float32:
    """Hidden states [S, T, H] after the full-precision model's last layer; one layer's weights in memory at a time."""
    x = model.embed(tokens)
    for index in range(model.layers):
        layer = model.layer(index)
        x = forward(x, layer, model.shape, model.windows[index], linear_of(layer))
        progress(index + 1)
    return x
