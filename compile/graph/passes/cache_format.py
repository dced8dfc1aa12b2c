"""The format of the KV caches of GroupQueryAttention: its operator, inputs and outputs; knows no weights."""

import onnx_ir as ir

from megrez.compile.graph.passes.graph import MICROSOFT, name_of, operand, replace

DOMAIN = "megrez.cache"
DTYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "int8": ir.DataType.INT8}
OPERATORS = {
    "float32": (MICROSOFT, "GroupQueryAttention"),
    "float16": (DOMAIN, "GroupQueryAttentionFloat16"),
    "int8": (DOMAIN, "GroupQueryAttentionInt8"),
}
# Inputs of the operators.
PAST, SCALES = (3, 4), (12, 13)


class CacheFormat(ir.passes.InPlacePass):
    """Give all caches [B, kv_heads, capacity, head_dim] the data type `dtype`, whichever of OPERATORS they have now.

    An int8 cache has scales, float32 caches [B, kv_heads, capacity, 1] of their own. Queries, new keys and values and
    the attention's output stay float32. See engines/ort/kernels/attention/attention.h.
    """

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.dtype = dtype

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        attentions = [node for node in model.graph if (node.domain, node.op_type) in OPERATORS.values()]
        old = [node for node in attentions if (node.domain, node.op_type) != OPERATORS[self.dtype]]
        for node in old:
            self._convert(model, node)
        if old and self.dtype != "float32":
            model.opset_imports[DOMAIN] = 1
        return ir.passes.PassResult(model, modified=bool(old))

    def _convert(self, model: ir.Model, old: ir.Node) -> None:
        graph, inputs = model.graph, list(old.inputs)
        caches, old_scales = [operand(old, index) for index in PAST], [inputs[index] for index in SCALES]
        scales = [_scales_of(cache) for cache in caches] if self.dtype == "int8" else []
        new: list[ir.Value | None] = [*scales] or [None, None]
        inputs[SCALES[0] : SCALES[1] + 1] = new
        domain, name = OPERATORS[self.dtype]
        node = ir.node(name, inputs, old.attributes, domain=domain, num_outputs=3 + len(scales))
        replace(model, old.outputs[:3], node.outputs[:3], at=old, node=node)
        for value in (*caches, *node.outputs[1:3]):
            value.type = ir.TensorType(DTYPES[self.dtype])
        for output in old.outputs[3:]:
            graph.outputs.remove(output)
        graph.remove(old, safe=True)
        for unused in filter(None, old_scales):
            graph.inputs.remove(unused)
        for scale, output in zip(scales, node.outputs[3:], strict=True):
            output.name = name_of(scale).replace("past_key_values", "present")
            output.type, output.shape = scale.type, scale.shape
            graph.inputs.append(scale)
            graph.outputs.append(output)


def _scales_of(cache: ir.Value) -> ir.Value:
    assert cache.shape is not None
    shape = ir.Shape([*cache.shape[:3], 1])
    return ir.Value(name=f"{name_of(cache)}_scale", type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
