"""Split a lowered graph into consecutive parts for an NPU: ranges of layers, and the LM head; knows no engine."""

from dataclasses import dataclass
from itertools import pairwise

import onnx_ir as ir

from megrez.compile.graph.passes.explicit_attention import is_mask
from megrez.compile.graph.passes.graph import name_of

ROTARY = ("rotary_cos", "rotary_sin")
IR_VERSION = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRange:
    """Layers first .. stop - 1."""

    first: int
    stop: int


def split_layers(layers: int, layer_bytes: int, limit: int) -> list[LayerRange]:
    """The fewest ranges of at most `limit` bytes of weights each, about equal in size; a layer is never split."""
    parts = -(-layers // max(1, limit // layer_bytes))
    edges = [layers * part // parts for part in range(parts + 1)]
    return [LayerRange(first=first, stop=stop) for first, stop in pairwise(edges)]


def layers_part(model: ir.Model, layers: LayerRange) -> ir.Model:
    """hidden.<first>, ROTARY, masks and caches  ->  hidden.<stop> and the layers' new keys and values."""
    caches = [f"{layer}.{kind}" for layer in range(layers.first, layers.stop) for kind in ("key", "value")]
    outputs = [f"hidden.{layers.stop}", *(f"present.{cache}" for cache in caches)]
    inputs = [f"hidden.{layers.first}", *ROTARY, *(f"past_key_values.{cache}" for cache in caches)]
    masks = [name_of(value) for value in model.graph.inputs if is_mask(value)]
    return _cut(model, inputs + masks, outputs)


def head_part(model: ir.Model, layers: int) -> ir.Model:
    """hidden.<layers>  ->  logits."""
    return _cut(model, [f"hidden.{layers}"], ["logits"])


def _cut(model: ir.Model, inputs: list[str], outputs: list[str]) -> ir.Model:
    """The subgraph between them, without unused inputs. Weights stay lazy."""
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    for value in [value for value in graph.inputs if not value.uses()]:
        graph.inputs.remove(value)
    return ir.Model(graph, ir_version=IR_VERSION)
