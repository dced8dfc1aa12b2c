"""The cache gets its fixed capacity, which a TensorRT engine is built for; knows no engine."""

import onnx_ir as ir

from megrez.compile.passes.graph import shape_of

CAPACITY = "capacity"


class StaticCapacity(ir.passes.InPlacePass):
    """Wherever a shape says `capacity`, it says how many tokens that is."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
        found = [value for value in values if value.shape is not None and _names_capacity(value)]
        for value in found:
            value.shape = ir.Shape([self.capacity if str(dim) == CAPACITY else dim for dim in shape_of(value)])
        return ir.passes.PassResult(model, modified=bool(found))


def _names_capacity(value: ir.Value) -> bool:
    return any(str(dim) == CAPACITY for dim in shape_of(value))
