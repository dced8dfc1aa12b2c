"""Ranges of every value in a static graph, from running it on samples layer by layer; knows no engine's format.

One layer's weights are in memory at a time. The graph is the one that will be quantised, with its quantised weights.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from megrez.calibration.activations.data_types import Integer
from megrez.calibration.activations.observer import MeanSquaredErrorObserver
from megrez.calibration.reference.model import EMBED_TOKENS
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.graph.passes.explicit_attention import mask_name
from megrez.compile.graph.passes.graph import static_shape
from megrez.compile.graph.passes.quantize_activations import PAST, Ranges
from megrez.compile.graph.rope import rotary_tables
from megrez.compile.graph.static.parts import ROTARY, LayerRange, head_part, layers_part
from megrez.engines.onnx_files import write_onnx
from megrez.engines.ort import MODEL_FILE
from megrez.engines.qnn.affine import Affine
from megrez.engines.qnn.masks import visible
from megrez.runtime.errors import CheckpointError

Float32 = NDArray[np.float32]
Feeds = dict[str, Float32]
# Capacity of the cache while samples are run; it stays empty.
CAPACITY = 1
CACHE_BITS = 8
KINDS = ("key", "value")
# Added to the scores of masked positions while ranges are observed.
MASKED = np.float32(-1e4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """ranges: by the value's name. caches: scale and zero point of "0.key", "0.value", …"""

    ranges: Ranges
    caches: Mapping[str, Affine]


class _AnyRange(dict[str, tuple[float, float]]):
    def __missing__(self, name: str) -> tuple[float, float]:
        return -8.0, 8.0


def assumed(layers: int) -> Observed:
    """For random weights, which have no meaningful ranges: a fixed one for all."""
    cache = Affine(bits=CACHE_BITS, scale=8 / 127, zero_point=128)
    return Observed(ranges=_AnyRange(), caches={f"{i}.{kind}": cache for i in range(layers) for kind in KINDS})


def observe(
    model: ir.Model,
    checkpoint: Checkpoint,
    tokens: NDArray[np.int64],
    progress: Callable[[int], None] = lambda layers: None,
) -> Observed:
    """Run a static graph of T tokens and CAPACITY on samples [S, T].

    Raises CheckpointError where a value is not finite.
    """
    config, ranges = checkpoint.config, _Ranges()
    embedding = checkpoint.read(EMBED_TOKENS)
    ranges.update("hidden.0", embedding)
    hidden = embedding[tokens]
    del embedding
    for name, table in zip(ROTARY, rotary_tables(config, config.max_position_embeddings), strict=True):
        ranges.update(name, table)  # the whole tables: the samples do not reach all positions
    shared = _shared_inputs(checkpoint, tokens.shape[1])
    caches: dict[str, Affine] = {}
    for layer in range(config.num_hidden_layers):
        caches |= _observe_layer(model, layer, hidden, shared, ranges)
        progress(layer + 1)
    with _Runner(head_part(model, config.num_hidden_layers)) as run:
        for states in hidden:
            ranges.update_all(run({f"hidden.{config.num_hidden_layers}": states[None]}))
    return Observed(ranges=ranges.found, caches=caches)


def _observe_layer(model: ir.Model, layer: int, hidden: Float32, shared: Feeds, ranges: "_Ranges") -> dict[str, Affine]:
    """Scale and zero point of the layer's caches; hidden [S, T, H] is overwritten with the layer's output."""
    observers = {kind: MeanSquaredErrorObserver(Integer(CACHE_BITS)) for kind in KINDS}
    with _Runner(layers_part(model, LayerRange(first=layer, stop=layer + 1))) as run:
        for sample, states in enumerate(hidden):
            found = run({f"hidden.{layer}": states[None], **shared})
            ranges.update_all(found)
            for kind in KINDS:
                observers[kind].update(found[f"present.{layer}.{kind}"])
            hidden[sample] = found[f"hidden.{layer + 1}"][0]
    return {
        f"{layer}.{kind}": Affine(bits=CACHE_BITS, scale=observer.scale(), zero_point=128)
        for kind, observer in observers.items()
    }


def _shared_inputs(checkpoint: Checkpoint, length: int) -> Feeds:
    config = checkpoint.config
    cos, sin = rotary_tables(config, length)
    masks = {
        mask_name(window): np.where(visible(0, length, CAPACITY, window), np.float32(0), MASKED)[None, None]
        for window in set(config.sliding_windows)
    }
    return {**dict(zip(ROTARY, (cos[None], sin[None]), strict=True)), **masks}


class _Ranges:
    """The smallest and the largest element observed for each name."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[float, float]] = {}

    def update_all(self, arrays: Feeds) -> None:
        for name, array in arrays.items():
            self.update(name, array)

    def update(self, name: str, array: Float32) -> None:
        low, high = float(array.min()), float(array.max())
        if not np.isfinite(low + high):
            raise CheckpointError(f"{name} of the model is not finite on the calibration text: repair the checkpoint")
        old = self.found.get(name, (low, high))
        self.found[name] = min(low, old[0]), max(high, old[1])


class _Runner:
    """A part on ONNX Runtime that returns every float32 value it computes, by name; its weights are in a file."""

    def __init__(self, part: ir.Model) -> None:
        self._part = part
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> Callable[[Feeds], Feeds]:
        import onnxruntime

        graph = self._part.graph
        outputs = set(graph.outputs)
        values = [value for node in graph if node.op_type != "DequantizeLinear" for value in node.outputs]
        graph.outputs.extend(value for value in values if value not in outputs)
        caches = {str(v.name): np.zeros(static_shape(v), np.float32) for v in graph.inputs if _is_cache(v)}
        inputs_of_part = {str(value.name) for value in graph.inputs}
        write_onnx(self._part, Path(self._folder.name))
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(Path(self._folder.name) / MODEL_FILE, options)
        names = [output.name for output in session.get_outputs()]

        def run(feeds: Feeds) -> Feeds:
            inputs = {name: array for name, array in (caches | feeds).items() if name in inputs_of_part}
            return dict(zip(names, session.run(names, inputs), strict=True))

        return run

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def _is_cache(value: ir.Value) -> bool:
    return str(value.name).startswith(PAST)
