"""Graphs to test on onnxruntime: small ones from text, canonical ones with a tiny checkpoint's weights."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime
from numpy.typing import NDArray

from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.graph.passes.graph import MICROSOFT
from megrez.compile.graph.weights import SOURCES, bind
from tests.traces import CONTEXT, traced

Float32 = NDArray[np.float32]
Feeds = Mapping[str, NDArray[Any]]
HEADER = '<ir_version: 11, opset_import: ["" : 24, "com.microsoft" : 1]>\n'
IDS: list[list[int]] = np.random.default_rng(7).integers(0, 320, (2, 16)).tolist()
# (tokens per row, tokens of each row that are valid): the rest of a row is rubbish that the next step writes over.
CHUNKS = ((7, (7, 3)), (4, (4, 4)), (1, (1, 1)), (2, (2, 2)), (2, (2, 1)))


def canonical(checkpoint: Checkpoint, context: int = CONTEXT) -> ir.Model:
    model = traced(checkpoint.config, context)
    bind(model, checkpoint, context)
    return model


def parse(text: str, weights: Mapping[str, Float32]) -> ir.Model:
    """The graph of an ONNX text; those of its inputs that are named in `weights` become a checkpoint's tensors.

    A projection, as everywhere in the canonical graph, is stored transposed: [in_features, out_features].
    """
    model = ir.from_onnx_text(HEADER + text)
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)
        name = str(value.name)
        stored = weights[name].T if name.endswith(("_proj.weight", "lm_head.weight")) else weights[name]
        value.const_value = ir.tensor(np.ascontiguousarray(stored), name=name)
        value.meta[SOURCES] = (name,)
        model.graph.initializers.add(value)
    common.ShapeInferencePass()(model)
    return model


def run(model: ir.Model, feeds: Feeds) -> dict[str, NDArray[Any]]:
    """The outputs by name, from onnxruntime without optimisations of its own."""
    model = model.clone()
    model.opset_imports[MICROSOFT] = 1
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return dict(zip((output.name for output in model.graph.outputs), session.run(None, feeds), strict=True))


def op_counts(model: ir.Model) -> dict[str, int]:
    types = [node.op_type for node in model.graph]
    return {op_type: types.count(op_type) for op_type in sorted(set(types))}


def ragged(step: Callable[..., Float32]) -> list[Float32]:
    """The logits of all tokens of IDS that CHUNKS cover, row by row, from two rows of different lengths."""
    lengths = [0, 0]
    found: list[list[Float32]] = [[], []]
    for width, valid in CHUNKS:
        tokens = [IDS[b][lengths[b] : lengths[b] + n] + [17] * (width - n) for b, n in enumerate(valid)]
        wanted = [b * width + t for b, n in enumerate(valid) for t in range(n)]
        logits_of_step = step(tokens, lengths, wanted)
        for b, part in enumerate(np.split(logits_of_step, [valid[0]])):
            found[b].append(part)
        lengths = [length + n for length, n in zip(lengths, valid, strict=True)]
    return [np.concatenate(parts) for parts in found]


class FakeCheckpoint:
    """The part of a Checkpoint that passes ask for, over arrays in memory; notes what was read."""

    def __init__(self, tensors: Mapping[str, Float32]) -> None:
        self.tensors = tensors
        self.config = SimpleNamespace(tie_word_embeddings="lm_head.weight" not in tensors)
        self.reads: list[str] = []

    def read(self, name: str) -> Float32:
        self.reads.append(name)
        return self.tensors[name]

    def block_format(self, name: str) -> None:
        return None

    def blocks(self, name: str) -> None:
        return None
