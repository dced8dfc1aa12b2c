"""Clean up a traced graph: constant shapes, no unused or repeated nodes. Changes no result and reads no weight."""

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.optimizer import fold_constants_ir

from megrez.compile.graph.passes.graph import constant, operand

# Larger constants are weights: they have no values yet and must not be folded.
SMALL = 1024


def tidy(model: ir.Model) -> None:
    fold_constants_ir(model, input_size_limit=SMALL, output_size_limit=SMALL)
    passes = (
        common.IdentityEliminationPass(),
        ConstantReshapes(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.ClearMetadataAndDocStringPass(),
    )
    ir.passes.Sequential(*passes)(model)


class ConstantReshapes(ir.passes.InPlacePass):
    """Give every Reshape a constant shape: 0 copies a leading dimension, one -1 is inferred."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        shapes: dict[tuple[int, ...], ir.Value] = {}
        for node in list(model.graph):
            if node.op_type != "Reshape" or operand(node, 1).const_value is not None:
                continue
            shape = _constant_shape(operand(node, 0).shape, node.outputs[0].shape)
            if shape is None:
                continue
            if shape not in shapes:
                name = "shape_" + "_".join(str(d) if d >= 0 else "n" for d in shape)
                shapes[shape] = constant(model, name, ir.tensor(list(shape), dtype=ir.DataType.INT64))
            node.replace_input_with(1, shapes[shape])
            node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
        return ir.passes.PassResult(model, modified=bool(shapes))


def _constant_shape(source: ir.Shape | None, target: ir.Shape | None) -> tuple[int, ...] | None:
    """`target` as a Reshape constant, or None where two of its dimensions are unknown."""
    if source is None or target is None:
        return None
    shape = [
        dim if isinstance(dim, int) else 0 if i < len(source) and dim == source[i] else -1
        for i, dim in enumerate(target)
    ]
    return tuple(shape) if shape.count(-1) <= 1 else None
