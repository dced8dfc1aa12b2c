"""RotaryEmbedding in elementwise operators on the two halves of a head, for engines without it; knows no engine."""

import onnx_ir as ir

from megrez.compile.graph.passes.graph import operand, replace, shape_of


class SplitRotary(ir.passes.InPlacePass):
    """[a | b] of each head  ->  [a cos - b sin | b cos + a sin], with cos and sin [B, T, head_dim / 2]."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [node for node in model.graph if node.op_type == "RotaryEmbedding"]
        for node in found:
            _split(model, node)
        return ir.passes.PassResult(model, modified=bool(found))


def _split(model: ir.Model, rotary: ir.Node) -> None:
    x, cos, sin = (operand(rotary, index) for index in range(3))
    *lead, width = shape_of(x)
    assert isinstance(width, int)
    half = ir.Shape([*lead, width // 2])
    halves = ir.node("Split", [x], {"axis": -1, "num_outputs": 2}, num_outputs=2)
    first, second = halves.outputs
    products = [ir.node("Mul", pair) for pair in ((first, cos), (second, sin), (second, cos), (first, sin))]
    a_cos, b_sin, b_cos, a_sin = (node.outputs[0] for node in products)
    sums = [ir.node("Sub", [a_cos, b_sin]), ir.node("Add", [b_cos, a_sin])]
    nodes = [halves, *products, *sums]
    stem = rotary.outputs[0].name
    for index, value in enumerate(value for node in nodes for value in node.outputs):
        value.name, value.type, value.shape = f"{stem}.{index}", x.type, half
    model.graph.insert_before(rotary, nodes)
    joined = ir.node("Concat", [node.outputs[0] for node in sums], {"axis": -1})
    replace(model, rotary.outputs, joined.outputs, at=rotary, node=joined)
    model.graph.remove(rotary, safe=True)
