"""Codes are those of ONNX's QuantizeLinear, and stand for the numbers of its DequantizeLinear."""

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from megrez.engines.qnn.affine import Affine, affine_of

RANGES = {"both": (-3.25, 9.5), "positive": (0.5, 2.0), "negative": (-7.0, -1.0), "tiny": (-1e-6, 3e-7)}


def onnx_codes(affine: Affine, x: np.ndarray) -> list[np.ndarray]:
    """QuantizeLinear of x, and DequantizeLinear of that, by ONNX's reference."""
    kind = onnx.TensorProto.UINT16 if affine.bits == 16 else onnx.TensorProto.UINT8
    grid = [
        helper.make_tensor("s", onnx.TensorProto.FLOAT, (), [affine.scale]),
        helper.make_tensor("z", kind, (), [affine.zero_point]),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    info = [helper.make_tensor_value_info(n, t, [None]) for n, t in (("x", 1), ("q", kind), ("y", 1))]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], grid)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    return list(ReferenceEvaluator(model).run(None, {"x": x}))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", RANGES)
def test_codes_are_onnx_s(name: str, bits: int) -> None:
    low, high = RANGES[name]
    affine = affine_of(low, high, bits)
    x = np.random.default_rng(0).uniform(1.2 * low - 0.1 * high, 1.2 * high, 500).astype(np.float32)
    codes, numbers = onnx_codes(affine, x)
    assert affine.encode(x).dtype == codes.dtype
    np.testing.assert_array_equal(affine.encode(x), codes)
    np.testing.assert_array_equal(affine.decode(codes), numbers)


@pytest.mark.parametrize("name", RANGES)
def test_the_range_is_held_and_zero_is_exact(name: str) -> None:
    low, high = RANGES[name]
    affine = affine_of(low, high)
    assert affine.decode(affine.encode(np.zeros(1, np.float32)))[0] == 0
    edges = np.array([low, high], np.float32)
    assert np.abs(affine.decode(affine.encode(edges)) - edges).max() <= 1.01 * affine.scale


def test_nothing_but_zeros_gets_a_scale_that_can_be_divided_by() -> None:
    affine = affine_of(0.0, 0.0)
    assert affine.scale == 1.0
    assert affine.decode(affine.encode(np.zeros(3, np.float32))).tolist() == [0, 0, 0]
