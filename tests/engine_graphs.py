"""Graphs that TensorRT engines are built from, of tiny checkpoints; and how to break them."""

from pathlib import Path

import onnx_ir as ir

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.graph.dialects import lower
from megrez.compile.graph.passes.half_precision import HalfPrecision
from megrez.compile.graph.passes.static_shapes import StaticShapes
from megrez.engines.targets import find_target
from tests.graphs import canonical

CAPACITY = 64
# Large enough for every kernel that real models get: int4 blocks of 128, heads of 64.
SHAPE = {"hidden": 256, "heads": 4, "kv_heads": 2, "head_dim": 64, "intermediate": 384}
ONE_LAYER = {**SHAPE, "layers": 1}  # a third faster to build


def engine_graph(folder: Path, target: str) -> ir.Model:
    """The graph of the checkpoint in `folder` as `megrez-compile --target` hands it to TensorRT."""
    checkpoint = open_checkpoint(str(folder))
    model = canonical(checkpoint, CAPACITY)
    lower(model, checkpoint, find_target(target), lambda name: 0.02)
    for one in (HalfPrecision(), StaticShapes({"capacity": CAPACITY})):
        one(model)
    return model


def find(model: ir.Model, op_type: str, ending: str = "") -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type and str(node.name).endswith(ending)]


def insert(model: ir.Model, op_type: str, at: ir.Node, index: int) -> None:
    """An operator of one input and one output before an operand of `at`."""
    value = at.inputs[index]
    assert value is not None
    node = ir.node(op_type, [value])
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    model.graph.insert_before(at, node)
    at.replace_input_with(index, node.outputs[0])


def make_causal(model: ir.Model) -> None:
    for node in find(model, "Attention"):
        node.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
        node.replace_input_with(3, None)


def hide_the_token_itself(model: ir.Model) -> None:
    for node in find(model, "LessOrEqual"):
        node.op_type = "Less"


def show_what_comes_after(model: ir.Model) -> None:
    for node in find(model, "LessOrEqual"):
        node.op_type = "GreaterOrEqual"


def copy_a_cache_before_it_is_written(model: ir.Model) -> None:
    insert(model, "Identity", find(model, "TensorScatter")[0], 0)


def copy_a_cache_before_it_is_returned(model: ir.Model) -> None:
    written = model.graph.outputs[1]
    node = ir.node("Identity", [written])
    node.outputs[0].type, node.outputs[0].shape = written.type, written.shape
    written.name, node.outputs[0].name = "written", written.name
    model.graph.append(node)
    model.graph.outputs[1] = node.outputs[0]


def scale_queries_beforehand(model: ir.Model) -> None:
    for node in find(model, "Attention"):
        node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)


def unround_an_input(model: ir.Model) -> None:
    """What down_proj reads is changed behind its rounding, so that no kernel can multiply it as it was rounded."""
    for node in find(model, "MatMul", "down_proj"):
        insert(model, "Relu", node, 0)


def change_a_dequantised_matrix(model: ir.Model) -> None:
    for node in find(model, "MatMul", "down_proj"):
        insert(model, "Relu", node, 1)
