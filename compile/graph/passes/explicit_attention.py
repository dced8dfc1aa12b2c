"""Attention as two matrix products and a softmax over cached and new tokens; knows no engine.

For engines that read a cache and output new keys and values, which the host writes to it.
"""

import numpy as np
import onnx_ir as ir

from megrez.compile.families.config import ModelConfig
from megrez.compile.graph.passes.graph import constant, name_of, operand, producer, static_shape

MASK = "mask"


class ExplicitAttention(ir.passes.InPlacePass):
    """TensorScatter and Attention of a graph with static shapes  ->  Concat, MatMul, Add, Softmax, MatMul.

    Inputs: past_key_values.N.key becomes [1, g, d, S]. write_indices is replaced by `mask`, or one mask per sliding
    window, see `mask_name`: [1, 1, T, S + T], added to the scores of the cached and then the new tokens. Outputs:
    present.N.key [1, g, d, T] and present.N.value [1, g, T, d], of the new tokens, each the output of an Identity,
    where an engine may convert them to the cache's data type.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        attentions = [node for node in model.graph if node.op_type == "Attention"]
        masks: dict[int | None, ir.Value] = {}
        scale = constant(model, "query_scale", ir.tensor(np.array(self.config.head_dim**-0.5, np.float32)))
        for node, window in zip(attentions, self.config.sliding_windows, strict=True):
            if window not in masks:
                masks[window] = _add_mask(model, node, window)
            _lower(model, node, masks[window], scale)
        return ir.passes.PassResult(model, modified=bool(attentions))


def mask_name(window: int | None) -> str:
    return MASK if window is None else f"{MASK}.{window}"


def is_mask(value: ir.Value) -> bool:
    name = name_of(value)
    return name == MASK or name.startswith(f"{MASK}.")


def _add_mask(model: ir.Model, attention: ir.Node, window: int | None) -> ir.Value:
    tokens, capacity = (static_shape(operand(attention, index))[2] for index in range(2))
    shape = ir.Shape([1, 1, tokens, capacity + tokens])
    mask = ir.Value(name=mask_name(window), type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
    model.graph.inputs.append(mask)
    return mask


def _lower(model: ir.Model, attention: ir.Node, mask: ir.Value, scale: ir.Value) -> None:
    scatters = [node for index in (1, 2) if (node := producer(attention.inputs[index], "TensorScatter")) is not None]
    assert len(scatters) == 2, f"{attention.name} does not read two caches"
    _, heads, tokens, width = static_shape(operand(attention, 0))
    _, kv_heads, capacity, _ = static_shape(operand(scatters[0], 0))
    stem, total, queries = name_of(attention.outputs[0]), capacity + tokens, heads // kv_heads * tokens
    nodes: list[ir.Node] = []

    def add(op_type: str, inputs: list[ir.Value], shape: list[int], **attributes: int | list[int]) -> ir.Value:
        node = ir.node(op_type, inputs, attributes)
        node.outputs[0].name = f"{stem}.{len(nodes)}"
        node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, ir.Shape(shape)
        nodes.append(node)
        return node.outputs[0]

    def reshape(value: ir.Value, shape: list[int]) -> ir.Value:
        name = f"shape_{'_'.join(map(str, shape))}"
        target = model.graph.initializers.get(name) or constant(model, name, ir.tensor(shape, dtype=ir.DataType.INT64))
        return add("Reshape", [value, target], shape)

    old_keys, old_values = (operand(one, 0) for one in scatters)
    old_keys.shape = ir.Shape([1, kv_heads, width, capacity])
    transposed = add("Transpose", [operand(scatters[0], 1)], [1, kv_heads, width, tokens], perm=[0, 1, 3, 2])
    new_keys = add("Identity", [transposed], [1, kv_heads, width, tokens])
    new_values = add("Identity", [operand(scatters[1], 1)], [1, kv_heads, tokens, width])
    keys = add("Concat", [old_keys, new_keys], [1, kv_heads, width, total], axis=3)
    values = add("Concat", [old_values, new_values], [1, kv_heads, total, width], axis=2)
    query = add("Mul", [operand(attention, 0), scale], [1, heads, tokens, width])
    scores = add("MatMul", [reshape(query, [1, kv_heads, queries, width]), keys], [1, kv_heads, queries, total])
    masked = add("Add", [reshape(scores, [1, heads, tokens, total]), mask], [1, heads, tokens, total])
    probabilities = add("Softmax", [masked], [1, heads, tokens, total], axis=-1)
    attended = add(
        "MatMul", [reshape(probabilities, [1, kv_heads, queries, total]), values], [1, kv_heads, queries, width]
    )
    result = reshape(attended, [1, heads, tokens, width])
    model.graph.insert_before(attention, nodes)
    attention.outputs[0].replace_all_uses_with(result)
    for scatter, new in zip(scatters, (new_keys, new_values), strict=True):
        name = name_of(scatter.outputs[0])
        scatter.outputs[0].name, new.name = f"{name}.written", name
        scatter.outputs[0].replace_all_uses_with(new, replace_graph_outputs=True)
    model.graph.remove([attention, *scatters], safe=True)
