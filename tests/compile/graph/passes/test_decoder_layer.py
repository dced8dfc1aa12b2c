"""Layers of quantised products become DecoderLayers where they have its form, and stay where they have not."""

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.graph.dialects import PASSES
from megrez.compile.graph.passes.decoder_layer import DecoderLayer
from megrez.engines.targets import find_target
from tests.graphs import canonical, op_counts


def before(folder: Any, target: str = "cpu-int4", kv: str = "f32") -> ir.Model:
    """The graph as DecoderLayer gets it."""
    checkpoint = open_checkpoint(str(folder))
    model = canonical(checkpoint)
    for step in PASSES["ort"](checkpoint, find_target(target).with_kv(kv), lambda name: None):
        if isinstance(step, DecoderLayer):
            return model
        step(model)
    raise AssertionError("the dialect has no DecoderLayer")


def fuse(model: ir.Model) -> dict[str, int]:
    DecoderLayer()(model)
    common.RemoveUnusedNodesPass()(model)
    return op_counts(model)


def find(model: ir.Model, op_type: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == op_type)


@pytest.mark.parametrize(
    ("kv", "name", "outputs"),
    [("f32", "DecoderLayer", 3), ("f16", "DecoderLayerFloat16", 3), ("int8", "DecoderLayerInt8", 5)],
)
def test_all_but_the_last_layer_become_one_node_each(checkpoint_of: Any, kv: str, name: str, outputs: int) -> None:
    model = before(checkpoint_of(), kv=kv)
    graph_outputs = [value.name for value in model.graph.outputs]
    counts = fuse(model)
    assert counts[name] == 1 and counts["SwiGLU"] == 1
    assert [value.name for value in model.graph.outputs] == graph_outputs
    node = find(model, name)
    assert len(node.outputs) == outputs
    (function,) = (one for one in model.functions.values() if one.name == name)
    assert len(function.inputs) >= len(node.inputs) > 30  # the last ones may be absent
    referred = {one.ref_attr_name for inner in function for one in inner.attributes.values() if one.is_ref()}
    assert referred == set(node.attributes)  # each is used, and each that is used is given


def test_float_weights_stay(checkpoint_of: Any) -> None:
    assert "DecoderLayer" not in fuse(before(checkpoint_of(), "cpu-fp32"))


def test_norms_of_heads_stay(checkpoint_of: Any) -> None:
    assert "DecoderLayer" not in fuse(before(checkpoint_of(family="qwen3")))


def accuracy(model: ir.Model) -> None:
    find(model, "MatMulNBits").attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)


def epsilon(model: ir.Model) -> None:
    find(model, "RMSNormalization").attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.25)


def another_reader(op_type: str) -> Callable[[ir.Model], None]:
    def read(model: ir.Model) -> None:
        value = find(model, op_type).outputs[0]
        node = ir.node("Identity", [value])
        model.graph.append(node)
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "seen", value.type, value.shape
        model.graph.outputs.append(node.outputs[0])

    read.__name__ = f"another reader of {op_type}"
    return read


def value_first(model: ir.Model) -> None:
    """Query and key are the parts of one product, in the other order."""
    attention = find(model, "GroupQueryAttention")
    query, key = attention.inputs[:2]
    attention.replace_input_with(0, key)
    attention.replace_input_with(1, query)


@pytest.mark.parametrize(
    "change",
    [
        accuracy,
        epsilon,
        value_first,
        *map(another_reader, ("RMSNormalization", "Split", "GroupQueryAttention", "SwiGLU", "Add")),
    ],
    ids=lambda change: change.__name__,
)
def test_what_only_looks_like_a_layer_stays(checkpoint_of: Any, change: Callable[[ir.Model], None]) -> None:
    model = before(checkpoint_of())
    change(model)
    assert "DecoderLayer" not in fuse(model)
