"""What an ONNX graph specifies for the engine built from it, and the faults that no engine could run correctly.

Reads operators and operands; knows no kernel and no library.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from megrez.engines.tensorrt.mask import mask_fault

NAMES = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.FLOAT8E4M3FN: "fp8",
    ir.DataType.INT8: "int8",
    ir.DataType.INT4: "int4",
    ir.DataType.FLOAT4E2M1: "fp4",
}
# Positions of the operands of Attention.
MASK, NONPAD_KV_SEQLEN = 3, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec:
    """projections: node name to its weights' data type. attentions: node names. capacity: positions of the KV cache."""

    projections: dict[str, str]
    attentions: tuple[str, ...]
    capacity: int


def read_graph(model: ir.Model) -> GraphSpec:
    """Read the spec; the capacity of the KV caches must be static."""
    cache = next(value for value in model.graph.inputs if len(_dims(value)) == 4)
    capacity = _dims(cache)[2]
    assert isinstance(capacity, int), "the capacity of the cache is fixed before an engine is built"
    return GraphSpec(
        projections={str(node.name): found for node in model.graph if (found := _projection(node)) is not None},
        attentions=tuple(str(node.name) for node in _attentions(model)),
        capacity=capacity,
    )


def graph_faults(model: ir.Model) -> list[str]:
    """Every attention that would attend to wrong positions, and every KV cache that would be copied, by layer."""
    faults = []
    mask_faults: dict[ir.Value | None, str | None] = {}  # most layers share one
    for node in _attentions(model):
        fault = _attention_fault(node)
        if fault is None:
            mask = node.inputs[MASK]
            if mask not in mask_faults:
                mask_faults[mask] = mask_fault(model, mask)
            fault = mask_faults[mask]
        faults += [f"{node.name} {fault}"] if fault is not None else []
    present = {value.name: value for value in model.graph.outputs}
    for past in model.graph.inputs:
        new = present.get(str(past.name).replace("past_key_values", "present"))
        if len(_dims(past)) == 4 and not _written_in_place(past, new):
            faults.append(f"{past.name} is not written in place by TensorScatter, so it would be copied")
    return faults


def _attentions(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in model.graph if node.op_type == "Attention")


def _attention_fault(node: ir.Node) -> str | None:
    causal = node.attributes.get("is_causal")
    if causal is not None and causal.as_int():
        return "has is_causal, which counts from the cache's first position and is wrong for every step but the first"
    if len(node.inputs) > NONPAD_KV_SEQLEN and node.inputs[NONPAD_KV_SEQLEN] is not None:
        return "takes sequence lengths from nonpad_kv_seqlen, which TensorRT's parser drops"
    if len(node.inputs) <= MASK or node.inputs[MASK] is None:
        return "has no mask and would attend to positions that were never written"
    return None


def _written_in_place(past: ir.Value, new: ir.Value | None) -> bool:
    writer = new.producer() if new is not None else None
    return writer is not None and writer.op_type == "TensorScatter" and writer.inputs[0] is past


def _projection(node: ir.Node) -> str | None:
    """Data type of the constant behind a MatMul's second operand, through Q/DQ nodes; None where there is none."""
    if node.op_type != "MatMul":
        return None
    matrix = node.inputs[1]
    while matrix is not None and (producer := matrix.producer()) is not None and producer.inputs:
        matrix = producer.inputs[0]
    if matrix is None or matrix.const_value is None:
        return None
    assert matrix.dtype is not None
    return NAMES[matrix.dtype]


def _dims(value: ir.Value) -> tuple[int | ir.SymbolicDim, ...]:
    return () if value.shape is None else tuple(value.shape)
