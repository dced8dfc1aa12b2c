"""Name projections and attentions after their layers, as reports do; changes no result."""

import onnx_ir as ir

from megrez.calibration.reference.model import EMBED_TOKENS
from megrez.compile.graph.passes.graph import name_of
from megrez.compile.graph.weights import weight_of


class NameLayers(ir.passes.InPlacePass):
    """MatMul: "model.layers.0.self_attn.q_proj+k_proj+v_proj"; Attention: "model.layers.0.self_attn"."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        attentions = (node for node in model.graph if node.op_type == "Attention")
        for layer, node in enumerate(attentions):
            node.name = f"model.layers.{layer}.self_attn"
        for node in model.graph:
            if (weight := weight_of(node)) is not None:
                name = name_of(weight)
                node.name = "lm_head" if name == EMBED_TOKENS else name.replace(".weight", "")
        return ir.passes.PassResult(model, modified=True)
