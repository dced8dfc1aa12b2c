"""Canonical graphs without a trace of their own: one graph, traced once per test run, has all that any may have.

From a copy of it is removed what a model does not have, and its sizes are exchanged for the model's.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from filelock import FileLock

from megrez.compile.families.config import ModelConfig
from megrez.compile.graph.export.trace import trace

CONTEXT = 64
WITHOUT_VALUES = ("model.", "lm_head.")
WINDOW = 1009
_traced: dict[str, ir.Model] = {}


def traced(config: ModelConfig, context: int = CONTEXT) -> ir.Model:
    """What `trace` returns, but for the names of nodes and of the values between them."""
    key = _key(config)
    if key not in _traced:
        _traced[key] = _derived(config)
    model = _traced[key].clone()
    for name in ("model.rotary_cos", "model.rotary_sin"):
        model.graph.initializers[name].shape = ir.Shape([context, config.head_dim // 2])
    return model


def _key(config: ModelConfig) -> str:
    return repr(replace(config, model_type="", rope={}, max_position_embeddings=1))


def _derived(config: ModelConfig) -> ir.Model:
    windows = {window for window in config.sliding_windows if window is not None}
    if config.num_key_value_heads == 1 or config.num_hidden_layers > 2 or len(windows) > 1:
        return _shared(config)  # torch traces sizes of 1 as such
    pattern = _pattern(config)
    model = _shared(pattern)
    if config.num_hidden_layers == 1:
        _leave_out_the_first_layer(model)
    _leave_out_biases_and_norms(model, config)
    _set_masks(model, config)
    if config.tie_word_embeddings:
        _tie(model, pattern)
    common.RemoveUnusedNodesPass()(model)
    sizes: dict[Any, Any] = dict(zip(_sizes(pattern), _sizes(config), strict=True))
    _exchange_sizes(model, {**sizes, WINDOW: max(windows, default=None)})
    return model


def _pattern(config: ModelConfig) -> ModelConfig:
    """A model with every part, and with sizes that nothing else in a graph is."""
    return replace(
        config,
        hidden_size=97,
        intermediate_size=101,
        num_hidden_layers=2,
        num_attention_heads=58,
        num_key_value_heads=29,
        head_dim=62,
        vocab_size=307,
        rms_norm_eps=3e-5,
        tie_word_embeddings=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        qk_norm=True,
        sliding_windows=(None, WINDOW),
    )


def _reads(model: ir.Model, name: str) -> ir.Node:
    """The one node that reads an initializer."""
    (node,) = model.graph.initializers[name].consumers()
    return node


def _bypass(node: ir.Node) -> None:
    """Whoever reads a node's output reads its first input instead."""
    source = node.inputs[0]
    assert source is not None
    node.outputs[0].replace_all_uses_with(source)


def _leave_out_the_first_layer(model: ir.Model) -> None:
    graph = model.graph
    first, last = (_reads(model, f"model.layers.{i}.input_layernorm.weight").inputs[0] for i in (0, 1))
    assert first is not None and last is not None
    last.replace_all_uses_with(first)
    caches = {str(value.name): value for value in graph.inputs}
    for kind in ("key", "value"):
        unused, kept = caches[f"past_key_values.0.{kind}"], caches[f"past_key_values.1.{kind}"]
        unused.replace_all_uses_with(kept)
        graph.inputs.remove(unused)
        kept.name = unused.name
    for output in list(graph.outputs[1:3]):
        graph.outputs.remove(output)
        output.name = f"{output.name}.unused"
    for value in graph.outputs[1:]:
        value.name = str(value.name).replace("present.1.", "present.0.")
    for name, value in list(graph.initializers.items()):
        del graph.initializers[name]
        if not name.startswith("model.layers.0."):
            value.name = name.replace("model.layers.1.", "model.layers.0.")
            graph.initializers.add(value)


def _leave_out_biases_and_norms(model: ir.Model, config: ModelConfig) -> None:
    parts = {
        ("q_proj.bias", "k_proj.bias", "v_proj.bias"): config.qkv_bias,
        ("o_proj.bias",): config.output_bias,
        ("gate_proj.bias", "up_proj.bias", "down_proj.bias"): config.mlp_bias,
        ("q_norm.weight", "k_norm.weight"): config.qk_norm,
    }
    endings = tuple(ending for names, kept in parts.items() if not kept for ending in names)
    for name in [name for name in model.graph.initializers if name.endswith(endings)] if endings else []:
        _bypass(_reads(model, name))
        del model.graph.initializers[name]


def _set_masks(model: ir.Model, config: ModelConfig) -> None:
    """Each layer's mask is causal or has the window."""
    causal, windowed = (node.outputs[0] for node in model.graph if node.op_type in ("LessOrEqual", "And"))
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    for node in attentions if config.num_hidden_layers == 2 else attentions[1:]:
        number = 0 if config.num_hidden_layers == 1 else attentions.index(node)
        node.replace_input_with(3, causal if config.sliding_windows[number] is None else windowed)


def _tie(model: ir.Model, pattern: ModelConfig) -> None:
    head = _reads(model, "lm_head.weight")
    transposed = ir.node("Transpose", [model.graph.initializers["model.embed_tokens.weight"]], {"perm": (1, 0)})
    value = transposed.outputs[0]
    value.shape, value.type = ir.Shape([pattern.hidden_size, pattern.vocab_size]), ir.TensorType(ir.DataType.FLOAT)
    value.name, transposed.name = "t", "node_t"
    model.graph.insert_before(head, transposed)
    head.replace_input_with(1, value)
    del model.graph.initializers["lm_head.weight"]


def _exchange_sizes(model: ir.Model, sizes: Mapping[Any, Any]) -> None:
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


def _sizes(config: ModelConfig) -> tuple[float, ...]:
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    products = (heads * width, kv_heads * width, width // 2, float(str(np.float32(width**-0.5))))
    return (
        config.hidden_size,
        config.intermediate_size,
        config.vocab_size,
        heads,
        kv_heads,
        width,
        *products,
        config.rms_norm_eps,
    )


def _exchange(tensor: ir.TensorProtocol, sizes: Mapping[Any, Any]) -> ir.TensorProtocol:
    if tensor.dtype != ir.DataType.INT64:
        return tensor
    array = tensor.numpy()
    exchanged = [sizes.get(one, one) for one in array.ravel().tolist()]
    return ir.tensor(np.array(exchanged, np.int64).reshape(array.shape), name=tensor.name)


def _shared(config: ModelConfig) -> ir.Model:
    """Traced by whichever process of this test run asks first, which takes 5 s; the others read its file."""
    path = Path(os.environ["MEGREZ_TEST_RUN"]) / f"{hashlib.sha256(_key(config).encode()).hexdigest()}.onnx"
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
