"""Graphs to test on onnxruntime: small ones from text, canonical ones traced once per shape and test run."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime
from filelock import FileLock
from numpy.typing import NDArray

from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.families.config import ModelConfig
from megrez.compile.graph.export.trace import trace
from megrez.compile.graph.passes.graph import MICROSOFT
from megrez.compile.graph.weights import SOURCES, bind

Float32 = NDArray[np.float32]
Feeds = Mapping[str, NDArray[Any]]
CONTEXT = 64
HEADER = '<ir_version: 11, opset_import: ["" : 24, "com.microsoft" : 1]>\n'
IDS: list[list[int]] = np.random.default_rng(7).integers(0, 320, (2, 16)).tolist()
# (tokens per row, tokens of each row that are valid): the rest of a row is rubbish that the next step writes over.
CHUNKS = ((7, (7, 3)), (4, (4, 4)), (1, (1, 1)), (2, (2, 2)), (2, (2, 1)))
WITHOUT_VALUES = ("model.", "lm_head.")
_traced: dict[str, ir.Model] = {}


def traced(config: ModelConfig, context: int = CONTEXT) -> ir.Model:
    """What `trace` returns, copied from an earlier graph of the same structure with the sizes of this `config`."""
    key = repr(replace(config, model_type="", rope={}, max_position_embeddings=1))
    if key not in _traced:
        _traced[key] = _resized(config)
    model = _traced[key].clone()
    for name in ("model.rotary_cos", "model.rotary_sin"):
        model.graph.initializers[name].shape = ir.Shape([context, config.head_dim // 2])
    return model


def _resized(config: ModelConfig) -> ir.Model:
    """Traced with sizes that nothing else in a graph is, which are then exchanged for those of `config`."""
    windows = {window for window in config.sliding_windows if window is not None}
    if config.num_key_value_heads == 1 or len(windows) > 1:  # torch traces sizes of 1 as such
        return _shared(config)
    pattern = replace(
        config,
        hidden_size=97,
        intermediate_size=101,
        num_attention_heads=58,
        num_key_value_heads=29,
        head_dim=62,
        vocab_size=307,
        sliding_windows=tuple(window and 1009 for window in config.sliding_windows),
    )
    sizes: dict[Any, Any] = dict(zip(_sizes(pattern), _sizes(config), strict=True))
    sizes[1009] = max(windows, default=None)
    model = _shared(pattern)
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([sizes.get(size, size) for size in value.shape])
        if value.const_value is not None:
            value.const_value = _exchange(value.const_value, sizes)
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR:
                node.attributes[name] = ir.AttrTensor(name, _exchange(attribute.as_tensor(), sizes))
            elif attribute.type in (ir.AttributeType.INT, ir.AttributeType.FLOAT):
                node.attributes[name] = ir.Attr(name, attribute.type, sizes.get(attribute.value, attribute.value))
    return model


def _sizes(config: ModelConfig) -> tuple[float, ...]:
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    products = (heads * width, kv_heads * width, width // 2, float(str(np.float32(width**-0.5))))
    return (config.hidden_size, config.intermediate_size, config.vocab_size, heads, kv_heads, width, *products)


def _exchange(tensor: ir.TensorProtocol, sizes: Mapping[Any, Any]) -> ir.TensorProtocol:
    if tensor.dtype != ir.DataType.INT64:
        return tensor
    array = tensor.numpy()
    exchanged = [sizes.get(one, one) for one in array.ravel().tolist()]
    return ir.tensor(np.array(exchanged, np.int64).reshape(array.shape), name=tensor.name)


def _shared(config: ModelConfig) -> ir.Model:
    """Traced by whichever process of this test run asks first, which takes 5 s; the others read its file."""
    key = repr(replace(config, model_type="", rope={}, max_position_embeddings=1))
    path = Path(os.environ["MEGREZ_TEST_RUN"]) / f"{hashlib.sha256(key.encode()).hexdigest()}.onnx"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            _save_without_values(trace(config, CONTEXT), path)
    return _load_without_values(path)


def _save_without_values(model: ir.Model, path: Path) -> None:
    """ONNX knows no initializer without a value: such ones become inputs."""
    for name in [name for name in model.graph.initializers if name.startswith(WITHOUT_VALUES)]:
        model.graph.inputs.append(model.graph.initializers.pop(name))
    ir.save(model, path)


def _load_without_values(path: Path) -> ir.Model:
    """The graph as it was before it was saved, with what onnx_ir keeps in memory alone."""
    model = ir.load(path)
    constants = dict(model.graph.initializers)
    model.graph.initializers.clear()
    for value in [value for value in model.graph.inputs if str(value.name).startswith(WITHOUT_VALUES)]:
        model.graph.inputs.remove(value)
        model.graph.initializers.add(value)
    for value in constants.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
        model.graph.initializers.add(value)
    for node in model.graph:
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.FLOAT:
                # The shortest decimal of the float32 that the file holds is what was traced: 1e-05.
                node.attributes[name] = ir.AttrFloat32(name, float(str(np.float32(attribute.as_float()))))
        if node.op_type == "Constant":
            tensor = ir.tensor(node.attributes["value"].as_tensor().numpy())
            node.attributes["value"] = ir.AttrTensor("value", tensor)
            node.outputs[0].const_value = tensor
    return model


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
