"""Constant reshape targets and a graph without dead, repeated or idle nodes; results stay, weights stay unread."""

import numpy as np
import pytest

from megrez.compile.graph.passes.tidy import ConstantReshapes, tidy
from tests.graphs import op_counts, parse, run

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 3, 8)).astype(np.float32)

# (what the graph returns, how it computes the target shape, the constant that takes its place)
RESHAPES = {
    "leading dimensions are copied": (
        "float[B,T,2,4]",
        "lead = Shape<start=0, end=2>(x) tail = Constant<value_ints=[2, 4]>() s = Concat<axis=0>(lead, tail)",
        [0, 0, 2, 4],
    ),
    "an unknown one is what is left": (
        "float[N,8]",
        "all = Shape<start=0, end=2>(x) n = ReduceProd(all) tail = Constant<value_ints=[8]>() "
        "s = Concat<axis=0>(n, tail)",
        [-1, 8],
    ),
    "a dimension in another place is not copied": (
        "float[B,8,T]",
        "b = Shape<start=0, end=1>(x) t = Shape<start=1, end=2>(x) eight = Constant<value_ints=[8]>() "
        "s = Concat<axis=0>(b, eight, t)",
        [0, 8, -1],
    ),
}


@pytest.mark.parametrize("name", RESHAPES)
def test_a_computed_target_becomes_a_constant(name: str) -> None:
    kind, shape, expected = RESHAPES[name]
    model = parse(f"agraph (float[B,T,8] x) => ({kind} y) {{ {shape} y = Reshape<allowzero=1>(x, s) }}", {})
    before = run(model, {"x": X})
    assert ConstantReshapes()(model).modified
    (node,) = (node for node in model.graph if node.op_type == "Reshape")
    target = node.inputs[1].const_value
    assert target is not None and target.numpy().tolist() == expected
    np.testing.assert_array_equal(run(model, {"x": X})["y"], before["y"])


def test_two_unknown_dimensions_stay_computed() -> None:
    model = parse(
        "agraph (float[B,T,8] x) => (float[T,B,8] y) { b = Shape<start=0, end=1>(x) t = Shape<start=1, end=2>(x) "
        "eight = Constant<value_ints=[8]>() s = Concat<axis=0>(t, b, eight) y = Reshape(x, s) }",
        {},
    )
    assert not ConstantReshapes()(model).modified
    np.testing.assert_array_equal(run(model, {"x": X})["y"], X.reshape(3, 2, 8))


def test_equal_targets_share_one_constant() -> None:
    model = parse(
        "agraph (float[B,T,8] x) => (float[B,T,2,4] y, float[B,T,2,4] z) { lead = Shape<start=0, end=2>(x) "
        "tail = Constant<value_ints=[2, 4]>() s = Concat<axis=0>(lead, tail) y = Reshape(x, s) "
        "x2 = Add(x, x) z = Reshape(x2, s) }",
        {},
    )
    ConstantReshapes()(model)
    assert list(model.graph.initializers) == ["shape_0_0_2_4"]


def test_tidy_drops_idle_dead_and_repeated_nodes_and_folds_small_constants() -> None:
    weight = RANDOM.normal(size=(40, 40)).astype(np.float32)
    model = parse(
        'agraph (float[B,40] x, float[40,40] "a.weight") => (float[B,40] y) { same = Identity(x) '
        'p = MatMul(same, "a.weight") q = MatMul(x, "a.weight") dead = Sqrt(x) '
        "two = Constant<value_floats=[2.0]>() three = Constant<value_floats=[3.0]>() six = Mul(two, three) "
        "sum = Add(p, q) y = Mul(sum, six) }",
        {"a.weight": weight},
    )
    value = model.graph.initializers["a.weight"]
    held, value.const_value = value.const_value, None  # as in a fresh trace, where a weight has no value yet
    tidy(model)
    assert {name: count for name, count in op_counts(model).items() if name != "Constant"} == {
        "Add": 1,
        "MatMul": 1,
        "Mul": 1,
    }
    model.graph.initializers["a.weight"].const_value = held
    x = RANDOM.normal(size=(5, 40)).astype(np.float32)
    expected = 12 * (x.astype(np.float64) @ weight.astype(np.float64))
    np.testing.assert_allclose(run(model, {"x": x})["y"], expected, rtol=0, atol=1e-4)
