"""Convert float32 to float16, caches and logits included; weights when they are written. Knows no engine."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from megrez.compile.graph.weights import lazy
from megrez.runtime.errors import CheckpointError

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


class HalfPrecision(ir.passes.InPlacePass):
    """Every float32 value becomes float16, scales included; codes, indices and masks stay.

    Raises CheckpointError, when a weight is written, where one of its values exceeds float16's 65504.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
        float32_values = [value for value in values if value.dtype == FLOAT]
        for value in float32_values:
            value.type = ir.TensorType(HALF)  # a clone may share the old one
            if value.const_value is not None:
                value.const_value = lazy(value, _converted(value.const_value))
        for node in graph:
            assert node.op_type not in ("Cast", "Constant") or not _makes_float(node), f"{node.name} makes float32"
        return ir.passes.PassResult(model, modified=bool(float32_values))


def _converted(tensor: ir.TensorProtocol) -> Callable[[], NDArray[np.generic]]:
    return lambda: _to_half(tensor.numpy(), str(tensor.name))


def _to_half(array: NDArray[np.float32], name: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise CheckpointError(
            f"{name} holds {np.abs(array).max():g}, float16 ends at 65504: this model cannot run in float16"
        )
    return half


def _makes_float(node: ir.Node) -> bool:
    """Whether a Cast or Constant gives float32 by its attributes."""
    attributes = node.attributes
    if node.op_type == "Cast":
        return attributes["to"].as_int() == FLOAT
    value = attributes.get("value")
    return "value_float" in attributes or (value is not None and value.as_tensor().dtype == FLOAT)
