"""Graph helpers that passes share; knows nodes and values, no model."""

from collections.abc import Sequence

import onnx_ir as ir

MICROSOFT = "com.microsoft"
# Our functions of standard operators, for which our engine has kernels.
MEGREZ = "megrez"


def constant(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer that holds `tensor`."""
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    model.graph.initializers.add(value)
    return value


def name_of(value: ir.Value) -> str:
    assert value.name is not None
    return value.name


def shape_of(value: ir.Value) -> ir.Shape:
    assert value.shape is not None, f"{value.name} has no shape"
    return value.shape


def static_shape(value: ir.Value) -> tuple[int, ...]:
    """The shape of a value without symbolic dimensions, such as a weight."""
    assert value.shape is not None and value.shape.is_static(), f"{value.name} has no static shape"
    return value.shape.numpy()


def operand(node: ir.Node, index: int) -> ir.Value:
    """An input of `node` that is not None, which stands for an omitted optional one."""
    value = node.inputs[index]
    assert value is not None, f"{node.name} has no input {index}"
    return value


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that produces `value`, if it is one of `op_types`."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in op_types else None


def only_consumer(value: ir.Value, op_type: str) -> ir.Node | None:
    """The only node that uses `value`, if there is one and it is an `op_type`."""
    users = {node for node, _ in value.uses()}
    node = users.pop() if len(users) == 1 else None
    return node if node is not None and node.op_type == op_type else None


def replace(model: ir.Model, old: Sequence[ir.Value], new: Sequence[ir.Value], *, at: ir.Node, node: ir.Node) -> None:
    """Insert `node` before `at`, and replace the values `old` by `new`, which get their shapes, types and names."""
    model.graph.insert_before(at, node)
    for before, after in zip(old, new, strict=True):
        after.shape, after.type = before.shape, before.type
        before.name, after.name = f"{before.name}.replaced", before.name
        before.replace_all_uses_with(after, replace_graph_outputs=True)
