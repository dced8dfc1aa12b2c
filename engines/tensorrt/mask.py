"""Check that an attention mask is causal: each token attends to itself and earlier tokens, and to nothing else.

The sub-graph that computes the mask is evaluated on small inputs; knows no engine.
"""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

# Constants of a mask are smaller: anything larger is a weight.
SMALL = 1024


def mask_fault(model: ir.Model, mask: ir.Value | None) -> str | None:
    """What is wrong with `mask`, bool [B, 1, T, capacity], of the tokens at write_indices [B] .. + T - 1.

    A sliding window is right where it is the same for every token.
    """
    capacity = _capacity(model)
    width = min(3, capacity)
    starts = np.array([0, capacity - width], np.int64)
    found = _evaluate(model, mask, starts, width, capacity)
    if found is None:
        return "has a mask that depends on more than positions"
    if found.dtype != np.bool_ or found.shape != (2, 1, width, capacity):
        return f"has a mask of {found.dtype} {list(found.shape)}, not bool [batch, 1, sequence, capacity]"
    slot = np.arange(capacity)
    query = (starts[:, None] + np.arange(width))[:, None, :, None]  # [B, 1, T, 1]
    window = int(found[1, 0, -1].sum())  # what the last token attends to; the whole cache without a sliding window
    if np.array_equal(found, (slot <= query) & (slot > query - window)):
        return None
    return "has a mask that is not causal"


def _capacity(model: ir.Model) -> int:
    shape = next(value.shape for value in model.graph.inputs if _is_cache(value))
    assert shape is not None and isinstance(shape[2], int)
    return shape[2]


def _is_cache(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 4


def _evaluate(
    model: ir.Model, mask: ir.Value | None, starts: NDArray[np.int64], width: int, capacity: int
) -> NDArray[np.generic] | None:
    """The mask by ONNX's reference evaluator; None where it depends on other inputs or on weights."""
    cache = np.zeros((len(starts), 1, capacity, 1), np.float16)
    given: dict[str, NDArray[np.generic]] = {str(value.name): cache for value in model.graph.inputs if _is_cache(value)}
    given |= {"input_ids": np.zeros((len(starts), width), np.int64), "write_indices": starts}
    nodes, constants, inputs = _ancestors(mask)
    if not inputs <= given.keys() or any(tensor.size > SMALL for tensor in constants.values()):
        return None
    feeds = {name: given[name] for name in inputs}
    assert mask is not None
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in model.graph if node in nodes],
        "mask",
        [_declared(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype)) for name, array in feeds.items()],
        [_declared(str(mask.name), onnx.TensorProto.BOOL)],
        [onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    outputs: Any = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets)).run(None, feeds)
    return np.asarray(outputs[0])


def _declared(name: str, dtype: int) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, dtype, None)


def _ancestors(value: ir.Value | None) -> tuple[set[ir.Node], dict[str, ir.TensorProtocol], set[str]]:
    """The nodes, constants and graph inputs that `value` is computed from."""
    nodes: set[ir.Node] = set()
    constants: dict[str, ir.TensorProtocol] = {}
    inputs: set[str] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop()
        node = one.producer() if one is not None else None
        if node is not None:
            waiting += node.inputs if node not in nodes else ()
            nodes.add(node)
        elif one is not None and one.const_value is not None:
            constants[str(one.name)] = one.const_value
        elif one is not None:
            inputs.add(str(one.name))
    return nodes, constants, inputs
