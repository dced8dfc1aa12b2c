"""A residual Add followed by its RMSNormalization becomes one SkipSimplifiedLayerNormalization (ONNX Runtime)."""

import onnx_ir as ir

from megrez.compile.graph.passes.graph import MICROSOFT, operand, producer, replace


class SkipNorm(ir.passes.InPlacePass):
    """RMSNormalization(a + b)  ->  SkipSimplifiedLayerNormalization(a, b), whose fourth output is the sum."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [(node, add) for node in model.graph if (add := _residual(node)) is not None]
        for norm, add in found:
            epsilon = norm.attributes["epsilon"].as_float()
            fused = ir.node(
                "SkipSimplifiedLayerNormalization",
                [*add.inputs, norm.inputs[1]],
                {"epsilon": epsilon},
                domain=MICROSOFT,
                num_outputs=4,
            )
            y, mean, deviation, total = fused.outputs
            mean.name, deviation.name = "", ""
            replace(model, [norm.outputs[0], add.outputs[0]], [y, total], at=add, node=fused)
            model.graph.remove([norm, add], safe=True)
        return ir.passes.PassResult(model, modified=bool(found))


def _residual(node: ir.Node) -> ir.Node | None:
    if node.op_type != "RMSNormalization":
        return None
    add = producer(node.inputs[0], "Add")
    return add if add is not None and operand(add, 0).shape == operand(add, 1).shape else None
