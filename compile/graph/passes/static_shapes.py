"""Replace symbolic dimensions by the sizes that an engine is built for; knows no engine."""

from collections.abc import Mapping

import onnx_ir as ir

from megrez.compile.graph.passes.graph import shape_of


class StaticShapes(ir.passes.InPlacePass):
    """sizes: by the name of a symbolic dimension, such as "capacity"."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.sizes = sizes

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
        found = [value for value in values if value.shape is not None and self._names_any(value)]
        for value in found:
            value.shape = ir.Shape([self.sizes.get(str(dim), dim) for dim in shape_of(value)])
        return ir.passes.PassResult(model, modified=bool(found))

    def _names_any(self, value: ir.Value) -> bool:
        return any(str(dim) in self.sizes for dim in shape_of(value))
