"""Every value has codes, those that move share theirs, and the graph computes what rounding each value gives."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray

from megrez.compile.graph.passes.quantize_activations import QuantizeActivations
from megrez.engines.qnn.affine import Affine, affine_of
from tests.graphs import HEADER, op_counts, run

# An attention head of its own: a cache, what is new beside it, a mask, and a norm whose weight is no matrix.
GRAPH = """agraph
    (float[1,1,4,3] query, float[1,1,3,5] "past_key_values.0.key", float[1,1,4,3] new, float[1,1,4,9] mask)
    => (float[1,1,3,4] "present.0.key", float[1,1,4,9] shares)
    <float[3] scale = {0.5, -1.25, 2.0}>
{
    normed = RMSNormalization<axis = -1>(query, scale)
    turned = Transpose<perm = [0, 1, 3, 2]>(new)
    "present.0.key" = Identity(turned)
    keys = Concat<axis = 3>("past_key_values.0.key", "present.0.key")
    scores = MatMul(normed, keys)
    masked = Add(scores, mask)
    shares = Softmax<axis = -1>(masked)
}"""
CACHE = Affine(bits=8, scale=0.02, zero_point=128)
RANGES = {
    "query": (-3.0, 3.5),
    "new": (-1.0, 2.0),
    "normed": (-4.0, 4.0),
    "turned": (-1.5, 1.0),
    "scores": (-9.0, 12.0),
}
MASKED = -50.0


def quantized() -> ir.Model:
    model = ir.from_onnx_text(HEADER + GRAPH)
    common.ShapeInferencePass()(model)
    assert QuantizeActivations(RANGES, {"0.key": CACHE}, MASKED)(model).modified
    return model


def rounded(affine: Affine, x: NDArray[Any]) -> NDArray[np.float64]:
    """x as its codes tell it, in float64."""
    codes = np.clip(np.rint(x / affine.scale) + affine.zero_point, 0, 2**affine.bits - 1)
    return np.asarray((codes - affine.zero_point) * affine.scale)


def grid_of(model: ir.Model, name: str) -> tuple[float, int]:
    """Scale and zero point of the codes called `name`."""
    node = next(node for node in model.graph if node.outputs[0].name == name)
    scale, zero = (node.inputs[index].const_value.numpy() for index in (1, 2))  # type: ignore[union-attr]
    return float(scale), int(zero)


def test_the_graph_computes_what_rounding_every_value_gives() -> None:
    model, random = quantized(), np.random.default_rng(0)
    query, new = affine_of(*RANGES["query"]), affine_of(-1.5, 2.0)  # with what it is turned into
    feeds = {
        "query": query.encode(random.uniform(-3, 3, (1, 1, 4, 3))),
        "past_key_values.0.key": random.integers(60, 200, (1, 1, 3, 5)).astype(np.uint8),
        "new": new.encode(random.uniform(-1, 1, (1, 1, 4, 3))),
        "mask": np.where(random.random((1, 1, 4, 9)) < 0.3, 0, 0xFFFF).astype(np.uint16),
    }
    found = run(model, feeds)
    weight = rounded(affine_of(-1.25, 2.0), np.array([0.5, -1.25, 2.0]))
    x = (feeds["query"].astype(float) - query.zero_point) * query.scale
    normed = rounded(affine_of(-4.0, 4.0), x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * weight)
    turned = ((feeds["new"].astype(float) - new.zero_point) * new.scale).swapaxes(2, 3)
    present = rounded(CACHE, turned)
    past = (feeds["past_key_values.0.key"].astype(float) - 128) * CACHE.scale
    scores = rounded(affine_of(-9.0, 12.0), normed @ np.concatenate([past, present], axis=3))
    masked = rounded(affine_of(-59.0, 12.0), scores + np.where(feeds["mask"] == 0, MASKED, 0))
    shares = np.exp(masked - masked.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    assert found["present.0.key"].dtype == np.uint8 and found["shares"].dtype == np.uint16
    np.testing.assert_array_equal((found["present.0.key"] - 128.0) * CACHE.scale, present)
    # Where float32 falls on the other side of a half, a score is a step off.
    assert np.abs(found["shares"] / 65536 - shares).max() <= 21 / 65535


def test_what_moves_has_one_scale_and_new_keys_are_converted_to_the_cache_s() -> None:
    model = quantized()
    joint = affine_of(-1.5, 2.0)
    assert grid_of(model, "new.dequantized") == grid_of(model, "turned.codes") == (joint.scale, joint.zero_point)
    for name in ("past_key_values.0.key.dequantized", "present.0.key", "keys.codes"):
        assert grid_of(model, name) == (np.float32(CACHE.scale), CACHE.zero_point)
    assert grid_of(model, "shares") == (2.0**-16, 0)
    assert "Identity" not in op_counts(model)


def test_inputs_and_outputs_are_codes_and_each_operator_reads_and_gives_them() -> None:
    model = quantized()
    types = {str(value.name): value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    wide, narrow = ir.DataType.UINT16, ir.DataType.UINT8
    assert types == {
        "query": wide,
        "past_key_values.0.key": narrow,
        "new": wide,
        "mask": wide,
        "present.0.key": narrow,
        "shares": wide,
    }
    for node in model.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            assert {v.producer().op_type for v in node.inputs if v is not None} == {"DequantizeLinear"}  # type: ignore[union-attr]
            assert {user.op_type for user, _ in node.outputs[0].uses()} == {"QuantizeLinear"}
