"""A gated activation becomes one function of standard operators, which any ONNX Runtime computes."""

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
from numpy.typing import NDArray

from megrez.compile.graph.passes.swiglu import SwiGLU
from tests.graphs import op_counts, parse, run

GATED = "gate, up = Split<axis=-1>(x, sizes) s = Sigmoid(gate) a = Mul(gate, s) y = Mul(a, up)"
X = np.random.default_rng(0).normal(0, 8, (2, 3, 16)).astype(np.float32)


def graph(nodes: str = GATED, outputs: str = "float[B,T,8] y", sizes: str = "8, 8") -> ir.Model:
    return parse(f"agraph (float[B,T,16] x) => ({outputs}) <int64[2] sizes = {{{sizes}}}> {{ {nodes} }}", {})


def silu(gate: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = gate.astype(np.float64)
    return wide / (1 + np.exp(-wide))


def test_it_is_one_node_and_computes_the_same() -> None:
    model = graph()
    assert SwiGLU()(model).modified
    common.RemoveUnusedNodesPass()(model)
    assert op_counts(model) == {"SwiGLU": 1}
    assert [(key[:2], {node.domain for node in f}) for key, f in model.functions.items()] == [
        (("megrez", "SwiGLU"), {""})
    ]
    np.testing.assert_allclose(run(model, {"x": X})["y"], silu(X[..., :8]) * X[..., 8:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "outputs", "sizes"),
    [
        (GATED, "float[B,T,4] y", "4, 12"),  # no halves
        (GATED.replace("Mul(a, up)", "Mul(a, gate)"), "float[B,T,8] y", "8, 8"),
        (GATED.replace("Sigmoid(gate)", "Sigmoid(up)"), "float[B,T,8] y", "8, 8"),
        (GATED.replace("Mul(gate, s)", "Mul(up, s)"), "float[B,T,8] y", "8, 8"),
        (GATED + " z = Add(a, up)", "float[B,T,8] y, float[B,T,8] z", "8, 8"),
    ],
)
def test_what_only_looks_like_it_stays(nodes: str, outputs: str, sizes: str) -> None:
    model = graph(nodes, outputs, sizes)
    assert not SwiGLU()(model).modified
    assert not model.functions


def test_a_split_that_others_read_stays_for_them() -> None:
    model = graph(GATED + " z = Add(gate, up)", "float[B,T,8] y, float[B,T,8] z")
    assert SwiGLU()(model).modified
    common.RemoveUnusedNodesPass()(model)
    assert op_counts(model) == {"Add": 1, "Split": 1, "SwiGLU": 1}
    found = run(model, {"x": X})
    np.testing.assert_allclose(found["y"], silu(X[..., :8]) * X[..., 8:], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["z"], X[..., :8] + X[..., 8:])
