"""A residual sum and its norm become one node that returns both."""

import numpy as np
from numpy.typing import NDArray

from megrez.compile.graph.passes.skip_norm import SkipNorm
from tests.graphs import op_counts, parse, run

RANDOM = np.random.default_rng(0)
A, B = (RANDOM.normal(size=(2, 3, 8)).astype(np.float32) for _ in range(2))
NORM = {"norm.weight": RANDOM.normal(size=8).astype(np.float32)}
EPSILON = 0.25  # large enough that a wrong one shows


def rms_norm(x: NDArray[np.float32]) -> NDArray[np.float64]:
    x64 = x.astype(np.float64)
    scale = np.sqrt((x64**2).mean(axis=-1, keepdims=True) + EPSILON)
    return np.asarray(x64 / scale * NORM["norm.weight"])


def graph(nodes: str, outputs: str = "float[B,T,8] y") -> str:
    inputs = 'float[B,T,8] a, float[B,T,8] b, float[8] c, float[8] "norm.weight"'
    norm = nodes.replace("RMS(", f"RMSNormalization<axis=-1, epsilon={EPSILON}>(")
    return f"agraph ({inputs}) => ({outputs}) {{ {norm} }}"


def test_sum_and_norm_are_one_node_and_the_sum_goes_on() -> None:
    model = parse(graph('s = Add(a, b) n = RMS(s, "norm.weight") y = Add(s, n)'), NORM)
    feeds = {"a": A, "b": B, "c": A[0, 0]}
    assert SkipNorm()(model).modified
    assert op_counts(model) == {"Add": 1, "SkipSimplifiedLayerNormalization": 1}
    expected = A.astype(np.float64) + B + rms_norm(A + B)
    np.testing.assert_allclose(run(model, feeds)["y"], expected, rtol=0, atol=1e-5)


def test_a_sum_that_is_an_output_keeps_its_name() -> None:
    model = parse(graph('s = Add(a, b) n = RMS(s, "norm.weight")', "float[B,T,8] s, float[B,T,8] n"), NORM)
    SkipNorm()(model)
    assert [output.name for output in model.graph.outputs] == ["s", "n"]
    found = run(model, {"a": A, "b": B, "c": A[0, 0]})
    np.testing.assert_array_equal(found["s"], A + B)
    np.testing.assert_allclose(found["n"], rms_norm(A + B), rtol=0, atol=1e-5)


def test_a_chain_of_residuals_is_fused_throughout() -> None:
    nodes = 's = Add(a, b) n = RMS(s, "norm.weight") t = Add(s, n) y = RMS(t, "norm.weight")'
    model = parse(graph(nodes), NORM)
    SkipNorm()(model)
    assert op_counts(model) == {"SkipSimplifiedLayerNormalization": 2}
    total = A + B
    expected = rms_norm((total + rms_norm(total)).astype(np.float32))
    np.testing.assert_allclose(run(model, {"a": A, "b": B, "c": A[0, 0]})["y"], expected, rtol=0, atol=1e-5)


def test_a_broadcast_sum_and_a_bare_norm_stay() -> None:
    nodes = 's = Add(a, c) y = RMS(s, "norm.weight") z = RMS(a, "norm.weight")'
    model = parse(graph(nodes, "float[B,T,8] y, float[B,T,8] z"), NORM)
    assert not SkipNorm()(model).modified
    assert op_counts(model) == {"Add": 1, "RMSNormalization": 2}
