"""Fuse projections that read the same input: q, k and v; gate and up. Splits the output; knows no engine."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.graph.passes.graph import constant, name_of, only_consumer, operand, shape_of, static_shape
from megrez.compile.graph.weights import SOURCES, add_lazy, stack


class FuseProjections(ir.passes.InPlacePass):
    """MatMul(x, w_i) [+ b_i] for weights of one input  ->  Split(MatMul(x, [w_0 | w_1 | …]) [+ b]).

    group: weights are fused only where it returns equal values for their names; by default all are.
    """

    def __init__(self, checkpoint: Checkpoint, group: Callable[[str], object] = lambda name: None) -> None:
        super().__init__()
        self.checkpoint, self.group = checkpoint, group

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        groups: dict[tuple[ir.Value, object], list[ir.Node]] = {}
        for node in model.graph:
            if node.op_type == "MatMul" and SOURCES in operand(node, 1).meta:
                group = self.group(operand(node, 1).meta[SOURCES][0])
                groups.setdefault((operand(node, 0), group), []).append(node)
        fused = [nodes for nodes in groups.values() if len(nodes) > 1]
        for nodes in fused:
            self._fuse(model, nodes)
        return ir.passes.PassResult(model, modified=bool(fused))

    def _fuse(self, model: ir.Model, nodes: list[ir.Node]) -> None:
        weights = [operand(node, 1) for node in nodes]
        widths = [static_shape(weight)[1] for weight in weights]
        adds = [only_consumer(node.outputs[0], "Add") for node in nodes]
        biased = [add for add in adds if add is not None and SOURCES in operand(add, 1).meta]
        assert len(biased) in (0, len(nodes)), "the projections of one input all have a bias or none has"
        y = ir.node("MatMul", [nodes[0].inputs[0], self._joined(model, weights, widths)])
        added = [y]
        if biased:
            y = ir.node("Add", [y.outputs[0], self._joined(model, [operand(add, 1) for add in biased], widths)])
            added.append(y)
        sizes = constant(model, f"{nodes[0].name}.sizes", ir.tensor(widths, dtype=ir.DataType.INT64))
        split = ir.node("Split", [y.outputs[0], sizes], {"axis": -1}, num_outputs=len(nodes))
        added.append(split)
        lead = shape_of(nodes[0].outputs[0])[:-1]
        for node in added[:-1]:
            node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, ir.Shape([*lead, sum(widths)])
        ends = biased or nodes
        model.graph.insert_before(nodes[0], added)
        for old, new in zip(ends, split.outputs, strict=True):
            new.name, new.dtype, new.shape = old.outputs[0].name, ir.DataType.FLOAT, old.outputs[0].shape
            old.outputs[0].replace_all_uses_with(new, replace_graph_outputs=True)
        model.graph.remove([*biased, *nodes], safe=True)

    def _joined(self, model: ir.Model, values: list[ir.Value], widths: list[int]) -> ir.Value:
        sources = tuple(name for value in values for name in value.meta[SOURCES])
        name = "+".join((sources[0], *(s.split(".")[-2] for s in sources[1:])))
        shape = (*static_shape(values[0])[:-1], sum(widths))
        matrix = len(shape) == 2

        def compute() -> NDArray[np.float32]:
            stacked = stack(self.checkpoint, sources)
            return stacked.T if matrix else stacked

        joined = add_lazy(model, name, ir.DataType.FLOAT, shape, compute)
        joined.meta[SOURCES] = sources
        for value in values:
            model.graph.initializers.pop(name_of(value))
        return joined
