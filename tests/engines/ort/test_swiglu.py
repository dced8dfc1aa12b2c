"""Our SwiGLU against float64, and that it runs in place of the function of that name."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.engines.ort.own_kernels import LIBRARY, needs_kernels

OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("megrez", 1)]

pytestmark = needs_kernels


def session() -> Any:
    """With a function of that name that does something else: what comes out tells which has run."""
    other = helper.make_function("megrez", "SwiGLU", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], OPSETS[:1])
    node = helper.make_node("SwiGLU", ["x"], ["y"], domain="megrez")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    graph = helper.make_graph([node], "g", [x], [y])
    model = helper.make_model(graph, functions=[other], opset_imports=OPSETS, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.register_custom_ops_library(str(LIBRARY))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def exact(x: NDArray[np.float32]) -> NDArray[np.float64]:
    gate, up = np.split(x.astype(np.float64), 2, axis=-1)
    return gate / (1 + np.exp(-gate)) * up


@pytest.mark.parametrize("shape", [(2,), (1, 1, 14336), (2, 3, 26), (5, 4100), (3, 0, 8), (16,)], ids=str)
def test_it_agrees_with_float64(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(0, 8, shape).astype(np.float32)
    (found,) = session().run(None, {"x": x})
    expected = exact(x)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-30)


def test_large_and_missing_numbers() -> None:
    x = np.array([[300, -80, np.nan, 0, 2, 2, 2, 2]], np.float32)
    (found,) = session().run(None, {"x": x})
    np.testing.assert_allclose(found, [[600, -160 * np.exp(-80), np.nan, 0]], rtol=1e-5)


def test_an_input_without_halves_is_refused() -> None:
    with pytest.raises(Exception, match="no two halves"):
        session().run(None, {"x": np.zeros((2, 3), np.float32)})
