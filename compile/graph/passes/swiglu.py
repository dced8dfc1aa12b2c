"""The gated activation of the MLP becomes one SwiGLU, an ONNX function of standard operators; knows no weights.

A runtime with a kernel for megrez::SwiGLU (engines/ort/kernels/swiglu.c) uses it, any other inlines the function.
"""

import onnx_ir as ir

from megrez.compile.graph.passes.graph import MEGREZ, only_consumer, operand, producer, replace

NAME = "SwiGLU"
OPSET = 24


class SwiGLU(ir.passes.InPlacePass):
    """Mul(Mul(gate, Sigmoid(gate)), up), with gate and up the halves of Split(x)  ->  SwiGLU(x)."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [(node, split) for node in model.graph if (split := _gated(node)) is not None]
        for product, split in found:
            node = ir.node(NAME, [split.inputs[0]], domain=MEGREZ)
            replace(model, product.outputs, node.outputs, at=product, node=node)
        if found:
            function = _function()
            model.functions[function.identifier()] = function
            model.opset_imports[MEGREZ] = 1
        return ir.passes.PassResult(model, modified=bool(found))


def _gated(product: ir.Node) -> ir.Node | None:
    """The Split whose halves `product` multiplies as in SwiGLU; None where it does not."""
    if product.op_type != "Mul":
        return None
    activated, up = product.inputs
    activation, split = producer(activated, "Mul"), producer(up, "Split")
    if activation is None or split is None or len(split.outputs) != 2:
        return None
    gate = split.outputs[0]
    sigmoid = producer(activation.inputs[1], "Sigmoid")
    halves = gate.shape is not None and gate.shape == split.outputs[1].shape
    own_sigmoid = sigmoid is not None and activation.inputs[0] is gate and operand(sigmoid, 0) is gate
    single_use = only_consumer(activation.outputs[0], "Mul") is product
    return split if halves and own_sigmoid and single_use and up is split.outputs[1] else None


def _function() -> ir.Function:
    x = ir.Value(name="x")
    split = ir.node("Split", [x], {"axis": -1, "num_outputs": 2}, num_outputs=2)
    gate, up = split.outputs
    sigmoid = ir.node("Sigmoid", [gate])
    activation = ir.node("Mul", [gate, sigmoid.outputs[0]])
    product = ir.node("Mul", [activation.outputs[0], up])
    nodes = [split, sigmoid, activation, product]
    graph = ir.Graph([x], product.outputs, nodes=nodes, opset_imports={"": OPSET}, name=NAME)
    return ir.Function(MEGREZ, NAME, graph=graph, attributes=[])
