"""Products and sums of halves rotate as the operator's definition says, in float64."""

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from megrez.compile.graph.passes.split_rotary import SplitRotary
from tests.graphs import HEADER, op_counts, run

GRAPH = """agraph (float[1,3,5,8] x, float[1,5,4] c, float[1,5,4] s) => (float[1,3,5,8] y) {
    y = RotaryEmbedding(x, c, s)
}"""


def test_halves_are_rotated_against_each_other() -> None:
    model = ir.from_onnx_text(HEADER + GRAPH)
    common.ShapeInferencePass()(model)
    assert SplitRotary()(model).modified
    assert op_counts(model) == {"Add": 1, "Concat": 1, "Mul": 4, "Split": 1, "Sub": 1}
    random = np.random.default_rng(0)
    x, angles = random.normal(size=(1, 3, 5, 8)).astype(np.float32), random.uniform(0, 7, (1, 5, 4))
    found = run(model, {"x": x, "c": np.cos(angles).astype(np.float32), "s": np.sin(angles).astype(np.float32)})["y"]
    turned = (x[..., :4] + 1j * x[..., 4:].astype(np.float64)) * np.exp(1j * angles)[:, None]
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_graph_without_rotations_stays() -> None:
    model = ir.from_onnx_text(f"{HEADER}agraph (float[2] x) => (float[2] y) {{ y = Sigmoid(x) }}")
    assert not SplitRotary()(model).modified
