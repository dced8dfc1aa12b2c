"""Name the values at which a model can be split: "hidden.0", …, "rotary_cos", "rotary_sin". Changes no result."""

import re

import onnx_ir as ir

from megrez.compile.graph.passes.graph import name_of, operand

LAYER_NORM = re.compile(r"model\.layers\.(\d+)\.input_layernorm\.weight")
ROTARY = {"model.rotary_cos": "rotary_cos", "model.rotary_sin": "rotary_sin"}


class NameBoundaries(ir.passes.InPlacePass):
    """hidden.N: the input of layer N, and after the last layer that of the final norm, all [B, T, H].

    rotary_cos, rotary_sin: of the tokens' positions, [B, T, head_dim / 2].
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = layers

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for node in model.graph:
            if node.op_type == "RMSNormalization":
                norm = name_of(operand(node, 1))
                if (found := LAYER_NORM.fullmatch(norm)) is not None:
                    operand(node, 0).name = f"hidden.{found[1]}"
                elif norm == "model.norm.weight":
                    operand(node, 0).name = f"hidden.{self.layers}"
            elif node.op_type == "Gather" and operand(node, 0).name in ROTARY:
                node.outputs[0].name = ROTARY[name_of(operand(node, 0))]
        return ir.passes.PassResult(model, modified=True)
