"""Attention over a cache written by TensorScatter becomes ONNX Runtime's GroupQueryAttention; knows no weights.

One GroupQueryAttention replaces Reshape, Transpose, RotaryEmbedding, TensorScatter, Attention and their inverses. It
reads each sequence's cached length from `seqlens_k`, so its cost grows with the tokens in the cache, not its capacity.
"""

import onnx_ir as ir

from megrez.compile.families.config import ModelConfig
from megrez.compile.graph.passes.graph import MICROSOFT, constant, only_consumer, operand, producer, replace, shape_of

# ONNX Runtime refuses other values of head_dim at run time; our kernel takes multiples of 8.
HEAD_MULTIPLE = 16
INPUTS: tuple[tuple[str, list[str]], ...] = (
    ("seqlens_k", ["batch"]),
    ("total_sequence_length", []),
    ("query_seqlens", ["batch"]),
)


class GroupQueryAttention(ir.passes.InPlacePass):
    """The input write_indices [B] is replaced by int32 inputs:

    seqlens_k [B]: each sequence's cached tokens after this step, minus one. total_sequence_length []: the largest.
    query_seqlens [B]: how many of a sequence's T new tokens are valid; without `ragged` there is no such input, and a
    sequence with several new tokens after cached ones must be the only one of a step.
    """

    def __init__(self, config: ModelConfig, *, ragged: bool = True) -> None:
        super().__init__()
        self.config = config
        self.inputs = INPUTS if ragged else INPUTS[:2]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        lengths = [ir.Value(name=n, type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape(s)) for n, s in self.inputs]
        attentions = [node for node in model.graph if node.op_type == "Attention"]
        for node, window in zip(attentions, self.config.sliding_windows, strict=True):
            self._lower(model, node, window, lengths)
        inputs = model.graph.inputs
        at = next(i for i, value in enumerate(inputs) if value.name == "write_indices")
        inputs[at : at + 1] = lengths
        return ir.passes.PassResult(model, modified=bool(attentions))

    def _lower(self, model: ir.Model, attention: ir.Node, window: int | None, lengths: list[ir.Value]) -> None:
        config = self.config
        scatter_k, scatter_v = (_need(attention.inputs[i], "TensorScatter") for i in (1, 2))
        rotary_q, rotary_k = (_need(v, "RotaryEmbedding") for v in (attention.inputs[0], scatter_k.inputs[1]))
        heads = (operand(rotary_q, 0), operand(rotary_k, 0), operand(scatter_v, 1))
        q, k, v = (_projected(model, value) for value in heads)
        tables = [_need(rotary_q.inputs[i], "Gather").inputs[0] for i in (1, 2)]
        attributes = {
            "num_heads": config.num_attention_heads,
            "kv_num_heads": config.num_key_value_heads,
            "do_rotary": 1,
            "local_window_size": -1 if window is None else window,
        }
        caches = [scatter_k.inputs[0], scatter_v.inputs[0]]
        inputs = [*_packed(q, k, v), *caches, *lengths[:2], *tables]
        if len(lengths) > 2:
            # position_ids, attention_bias, head_sink, k_scale, v_scale, q_norm and k_norm, which CPUs do not take
            inputs += [*[None] * 7, *lengths[2:]]
        node = ir.node("GroupQueryAttention", inputs, attributes, domain=MICROSOFT, num_outputs=3)
        merged = only_consumer(_only(attention.outputs[0], "Transpose").outputs[0], "Reshape")
        assert merged is not None
        old = [merged.outputs[0], scatter_k.outputs[0], scatter_v.outputs[0]]
        replace(model, old, node.outputs, at=merged, node=node)


def _packed(q: ir.Value, k: ir.Value, v: ir.Value) -> list[ir.Value | None]:
    """The fused projection where q, k and v are its three parts, else the three."""
    splits = {producer(value, "Split") for value in (q, k, v)}
    split = splits.pop()
    return [split.inputs[0], None, None] if split is not None and not splits else [q, k, v]


def _projected(model: ir.Model, heads: ir.Value) -> ir.Value:
    """The value [B, T, heads * d] behind [B, heads, T, d]: the projection, or its per-head norm flattened."""
    value = operand(_need(heads, "Transpose"), 0)
    norm = producer(value, "RMSNormalization")
    if norm is None:
        return operand(_need(value, "Reshape"), 0)
    *lead, count, head_dim = shape_of(value)
    assert isinstance(count, int) and isinstance(head_dim, int)
    width = count * head_dim
    shape = constant(model, f"{value.name}.flat", ir.tensor([0, 0, width], dtype=ir.DataType.INT64))
    flat = ir.node("Reshape", [value, shape])
    model.graph.insert_after(norm, flat)
    flat.outputs[0].dtype, flat.outputs[0].shape = ir.DataType.FLOAT, ir.Shape([*lead, width])
    return flat.outputs[0]


def _need(value: ir.Value | None, op_type: str) -> ir.Node:
    node = producer(value, op_type)
    assert node is not None, f"expected {op_type} before {value}"
    return node


def _only(value: ir.Value, op_type: str) -> ir.Node:
    node = only_consumer(value, op_type)
    assert node is not None, f"expected only {op_type} after {value}"
    return node
