"""Symbolic dimensions become numbers: those that are named, and no others."""

import onnx_ir as ir

from megrez.compile.graph.passes.static_shapes import StaticShapes
from tests.graphs import HEADER

GRAPH = "agraph (float[batch,2,capacity,4] past, float[batch,sequence] x) => (float[batch,2,capacity,4] present) {"


def test_only_the_capacity_is_fixed() -> None:
    model = ir.from_onnx_text(f"{HEADER}{GRAPH} present = Identity(past) }}")
    assert StaticShapes({"capacity": 48})(model).modified
    past, x = model.graph.inputs
    assert [str(dim) for dim in past.shape or ()] == ["batch", "2", "48", "4"]
    assert [str(dim) for dim in model.graph.outputs[0].shape or ()] == ["batch", "2", "48", "4"]
    assert [str(dim) for dim in x.shape or ()] == ["batch", "sequence"]
    assert isinstance((past.shape or ())[2], int)


def test_without_a_capacity_nothing_is_changed() -> None:
    model = ir.from_onnx_text(f"{HEADER}agraph (float[batch] x) => (float[batch] y) {{ y = Identity(x) }}")
    assert not StaticShapes({"capacity": 48})(model).modified
