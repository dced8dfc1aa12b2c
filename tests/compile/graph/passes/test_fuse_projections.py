"""Projections of one input become one matrix, stacked in order, whose parts are what each was."""

import numpy as np
import pytest

from megrez.compile.graph.passes.fuse_projections import FuseProjections
from tests.graphs import FakeCheckpoint, op_counts, parse, run

RANDOM = np.random.default_rng(0)
WIDTHS = {"q": 12, "k": 4, "v": 4}
WEIGHTS = {f"l.{part}_proj.weight": RANDOM.normal(size=(n, 8)).astype(np.float32) for part, n in WIDTHS.items()}
BIASES = {f"l.{part}_proj.bias": RANDOM.normal(size=n).astype(np.float32) for part, n in WIDTHS.items()}
X = RANDOM.normal(size=(2, 3, 8)).astype(np.float32)


def attention_inputs(biases: bool) -> str:
    """q, k and v of x, as the canonical graph has them."""
    names = ", ".join(f'float[8,{n}] "l.{part}_proj.weight"' for part, n in WIDTHS.items())
    names += "".join(f', float[{n}] "l.{part}_proj.bias"' for part, n in WIDTHS.items()) if biases else ""
    nodes = " ".join(
        f'm{part} = MatMul(x, "l.{part}_proj.weight") {part} = Add(m{part}, "l.{part}_proj.bias")'
        if biases
        else f'{part} = MatMul(x, "l.{part}_proj.weight")'
        for part in WIDTHS
    )
    outputs = ", ".join(f"float[B,T,{n}] {part}" for part, n in WIDTHS.items())
    return f"agraph (float[B,T,8] x, {names}) => ({outputs}) {{ {nodes} }}"


@pytest.mark.parametrize("biases", [False, True])
def test_three_projections_become_one_and_a_split(biases: bool) -> None:
    tensors = {**WEIGHTS, **(BIASES if biases else {})}
    checkpoint = FakeCheckpoint(tensors)
    model = parse(attention_inputs(biases), tensors)
    assert FuseProjections(checkpoint)(model).modified  # type: ignore[arg-type]
    assert op_counts(model) == {"MatMul": 1, "Split": 1, **({"Add": 1} if biases else {})}
    assert [output.name for output in model.graph.outputs] == ["q", "k", "v"]
    assert checkpoint.reads == []
    found = run(model, {"x": X})
    for part in WIDTHS:
        expected = X.astype(np.float64) @ WEIGHTS[f"l.{part}_proj.weight"].T.astype(np.float64)
        expected = expected + BIASES[f"l.{part}_proj.bias"] if biases else expected
        np.testing.assert_allclose(found[part], expected, rtol=0, atol=1e-5)


def test_the_joined_initializers_are_recipes_that_stack_rows_of_the_checkpoint() -> None:
    checkpoint = FakeCheckpoint({**WEIGHTS, **BIASES})
    model = parse(attention_inputs(True), checkpoint.tensors)
    FuseProjections(checkpoint)(model)  # type: ignore[arg-type]
    initializers = model.graph.initializers
    assert set(initializers) >= {"l.q_proj.weight+k_proj+v_proj", "l.q_proj.bias+k_proj+v_proj"}
    assert not set(initializers) & set(checkpoint.tensors)
    for kind, tensors in (("weight", WEIGHTS), ("bias", BIASES)):
        value = initializers[f"l.q_proj.{kind}+k_proj+v_proj"]
        assert value.const_value is not None
        np.testing.assert_array_equal(value.const_value.numpy().T, np.concatenate(list(tensors.values())))


def test_other_products_stay() -> None:
    weights = {name: WEIGHTS[name] for name in list(WEIGHTS)[:2]}
    model = parse(
        'agraph (float[B,T,8] x, float[B,T,8] z, float[8,12] "l.q_proj.weight", float[8,4] "l.k_proj.weight") '
        '=> (float[B,T,12] q, float[B,T,4] k, float[B,T,T] s) { q = MatMul(x, "l.q_proj.weight") '
        'k = MatMul(z, "l.k_proj.weight") xt = Transpose<perm=[0, 2, 1]>(x) s = MatMul(x, xt) }',
        weights,
    )
    assert not FuseProjections(FakeCheckpoint(weights))(model).modified  # type: ignore[arg-type]
    assert op_counts(model) == {"MatMul": 3, "Transpose": 1}


def test_a_bias_is_told_from_a_residual() -> None:
    """Each projection's result is added to x itself: that Add is no bias and stays behind the Split."""
    weights = {f"l.{part}_proj.weight": RANDOM.normal(size=(8, 8)).astype(np.float32) for part in ("gate", "up")}
    model = parse(
        'agraph (float[B,T,8] x, float[8,8] "l.gate_proj.weight", float[8,8] "l.up_proj.weight") '
        '=> (float[B,T,8] g, float[B,T,8] u) { a = MatMul(x, "l.gate_proj.weight") '
        'b = MatMul(x, "l.up_proj.weight") g = Add(a, x) u = Add(b, x) }',
        weights,
    )
    FuseProjections(FakeCheckpoint(weights))(model)  # type: ignore[arg-type]
    assert op_counts(model) == {"Add": 2, "MatMul": 1, "Split": 1}
    found = run(model, {"x": X})
    for name, part in (("g", "gate"), ("u", "up")):
        expected = X + X.astype(np.float64) @ weights[f"l.{part}_proj.weight"].T.astype(np.float64)
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-5)
