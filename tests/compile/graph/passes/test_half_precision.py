"""float32 values become float16 ones, weights when they are written; all else stays."""

import numpy as np
import onnx_ir as ir
import pytest

from megrez.compile.graph.passes.half_precision import HalfPrecision
from megrez.runtime.errors import CheckpointError
from tests.graphs import parse, run

RANDOM = np.random.default_rng(0)
WEIGHT = {"a_proj.weight": RANDOM.normal(size=(3, 8)).astype(np.float32)}
GRAPH = (
    'agraph (float[B,8] x, int64[N] rows, float[8,3] "a_proj.weight") => (float[N,3] y) '
    '{ h = MatMul(x, "a_proj.weight") y = Gather<axis=0>(h, rows) }'
)


def test_every_float_is_half_and_indices_stay() -> None:
    model = parse(GRAPH, WEIGHT)
    assert HalfPrecision()(model).modified
    values = [*model.graph.inputs, *model.graph.initializers.values(), *model.graph.outputs]
    assert {value.name: value.dtype for value in values} == {
        "x": ir.DataType.FLOAT16,
        "rows": ir.DataType.INT64,
        "a_proj.weight": ir.DataType.FLOAT16,
        "y": ir.DataType.FLOAT16,
    }
    x = RANDOM.normal(size=(4, 8)).astype(np.float16)
    found = run(model, {"x": x, "rows": np.array([2, 0])})["y"]
    assert found.dtype == np.float16
    rounded = WEIGHT["a_proj.weight"].astype(np.float16).astype(np.float64)
    np.testing.assert_allclose(found, (x.astype(np.float64) @ rounded.T)[[2, 0]], rtol=2e-3, atol=2e-3)


def test_a_weight_is_rounded_when_it_is_written_and_not_before() -> None:
    model = parse(GRAPH, WEIGHT)
    read: list[str] = []
    value = model.graph.initializers["a_proj.weight"]
    before = value.const_value
    assert before is not None

    def compute() -> ir.TensorProtocol:
        read.append("once")
        return before

    value.const_value = ir.LazyTensor(compute, dtype=before.dtype, shape=ir.Shape(before.shape.numpy()), name="w")  # type: ignore[arg-type]
    HalfPrecision()(model)
    assert read == []
    assert value.const_value is not None
    np.testing.assert_array_equal(value.const_value.numpy(), before.numpy().astype(np.float16))
    assert read == ["once"]


def test_a_clone_made_before_stays_as_it_was() -> None:
    model = parse(GRAPH, WEIGHT)
    clone = model.clone()
    HalfPrecision()(model)
    assert {value.dtype for value in clone.graph.initializers.values()} == {ir.DataType.FLOAT}


def test_a_weight_beyond_float16_is_named() -> None:
    model = parse(GRAPH, {"a_proj.weight": np.full((3, 8), -7e4, np.float32)})
    HalfPrecision()(model)
    tensor = model.graph.initializers["a_proj.weight"].const_value
    assert tensor is not None
    with pytest.raises(CheckpointError, match=r"^a_proj.weight holds 70000, float16 ends at 65504: "):
        tensor.numpy()
