"""Logits of every position: the last layer's Gather by logits_index is removed. Knows no engine."""

import onnx_ir as ir

from megrez.compile.graph.passes.graph import operand, producer, shape_of

NUM_LOGITS = "num_logits"


class AllPositions(ir.passes.InPlacePass):
    """Gather(Reshape(x, [B * T, H]), logits_index)  ->  x, [B, T, H]; the input logits_index is removed."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        index = next(value for value in graph.inputs if value.name == "logits_index")
        gathers = [node for node, _ in index.uses()]
        for node in gathers:
            reshape = producer(operand(node, 0), "Reshape")
            assert reshape is not None, f"{node.name} reads no flattened states"
            node.outputs[0].replace_all_uses_with(operand(reshape, 0))
        graph.remove(gathers, safe=True)
        graph.inputs.remove(index)
        for value in (value for node in graph for value in node.outputs):
            if value.shape is not None and len(value.shape) and str(value.shape[0]) == NUM_LOGITS:
                value.shape = ir.Shape(["batch", "sequence", *shape_of(value)[1:]])
        return ir.passes.PassResult(model, modified=True)
