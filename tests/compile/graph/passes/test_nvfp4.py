"""NVFP4 in the graph: weights that ONNX's reference decodes to what was rounded, inputs rounded by TensorRT's op."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from megrez.calibration.weights.nearest import quantize_nearest
from megrez.calibration.weights.ranges import AbsMax
from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.graph.dialects import lower
from megrez.engines.targets import find_target
from megrez.engines.weight_formats import NVFP4_BLOCKS
from tests.engine_graphs import SHAPE
from tests.graphs import canonical

SCALE = 0.01
QKV = ("q_proj", "k_proj", "v_proj")


@pytest.fixture
def lowered(checkpoint_of: Any) -> tuple[Any, ir.Model]:
    checkpoint = open_checkpoint(str(checkpoint_of(**SHAPE)))
    model = canonical(checkpoint)
    lower(model, checkpoint, find_target("trt-nvfp4"), lambda name: SCALE)
    return checkpoint, model


def find(model: ir.Model, name: str) -> ir.Node:
    [node] = [node for node in model.graph if node.name == name]
    return node


def producer(value: ir.Value | None) -> ir.Node:
    assert value is not None
    node = value.producer()
    assert node is not None
    return node


def decoded(matmul: ir.Node) -> NDArray[np.float32]:
    """The matrix [K, N] that the nodes before a product make, by ONNX's reference."""
    outer = producer(matmul.inputs[1])
    inner = producer(outer.inputs[1])
    for node in (inner, outer):
        for value in node.outputs:
            value.name = value.name or f"{node.name}.out"
    constants: list[Any] = [outer.inputs[0], *inner.inputs]
    tensors = [ir.to_proto(ir.Tensor(one.const_value.numpy(), name=one.name)) for one in constants]
    output = onnx.helper.make_tensor_value_info(str(outer.outputs[0].name), onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([ir.to_proto(inner), ir.to_proto(outer)], "weight", [], [output], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)])
    found: Any = ReferenceEvaluator(model).run(None, {})
    return np.asarray(found[0])


@pytest.mark.parametrize("layer", range(2))
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("self_attn.q_proj+k_proj+v_proj", [f"self_attn.{part}" for part in QKV]),
        ("self_attn.o_proj", ["self_attn.o_proj"]),
        ("mlp.gate_proj+up_proj", ["mlp.gate_proj", "mlp.up_proj"]),
        ("mlp.down_proj", ["mlp.down_proj"]),
    ],
)
def test_the_graph_decodes_to_the_rounded_matrix(lowered: Any, layer: int, name: str, parts: list[str]) -> None:
    checkpoint, model = lowered
    prefix = f"model.layers.{layer}"
    weight = np.concatenate([checkpoint.read(f"{prefix}.{part}.weight") for part in parts])
    expected = quantize_nearest(weight, NVFP4_BLOCKS, AbsMax()).dequantize().T
    np.testing.assert_array_equal(decoded(find(model, f"{prefix}.{name}")), expected)
    assert 0 < np.abs(expected - weight.T).max() < 0.2 * np.abs(weight).max()


def test_inputs_are_rounded_once_with_one_scale_for_both_halves(lowered: Any) -> None:
    _, model = lowered
    quantizers = [node for node in model.graph if node.op_type == "TRT_FP4DynamicQuantize"]
    assert len(quantizers) == 8 and model.opset_imports["trt"] == 1
    outer = producer(find(model, "model.layers.0.mlp.down_proj").inputs[0])
    inner, quantize = producer(outer.inputs[1]), producer(outer.inputs[0])
    assert inner.inputs[0] is quantize.outputs[1] and inner.inputs[1] is quantize.inputs[1]
    step = inner.inputs[1]
    assert step is not None and step.const_value is not None
    assert step.const_value.numpy() == np.float32(SCALE)
    assert {name: attribute.value for name, attribute in quantize.attributes.items()} == {
        "axis": 2,
        "block_size": 16,
        "scale_type": onnx.TensorProto.FLOAT8E4M3FN,
    }


def test_numbers_take_half_a_byte(lowered: Any) -> None:
    _, model = lowered
    codes = model.graph.initializers["model.layers.0.mlp.down_proj.codes"]
    assert codes.const_value is not None
    assert codes.dtype == ir.DataType.FLOAT4E2M1
    assert codes.const_value.nbytes == SHAPE["hidden"] * SHAPE["intermediate"] // 2
