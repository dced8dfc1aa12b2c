"""Portable graphs to test: lowered with given input scales, staged as bundles, and simulated apart from the product."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from megrez.compile.bundle.describe import Content, describe
from megrez.compile.bundle.writer import new_bundle
from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.graph.dialects import lower
from megrez.engines.onnx_files import write_onnx
from megrez.engines.targets import Target, find_target
from tests.graphs import canonical

FLOAT32 = replace(find_target("trt-int4"), name="float32", weights=None, sensitive=None)


def stage(
    folder: Path,
    target: Target,
    output: Path,
    *,
    context: int = 24,
    input_scale: Callable[[str], float | None] = lambda name: None,
) -> ir.Model:
    """The checkpoint in `folder` as a bundle of the portable graph; returns the graph as it is stored."""
    checkpoint, target = open_checkpoint(str(folder)), target.staged()
    model = canonical(checkpoint, context)
    lower(model, checkpoint, target, input_scale)
    content = Content(checkpoint=checkpoint, target=target, context=context, weights="checkpoint", record=None)
    with new_bundle(output) as new:
        write_onnx(model, new.folder)
        new.finish(describe(content), checkpoint.text, None)
    return ir.load(output / "model.onnx")


def run_basic(model: ir.Model, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """The outputs as the portable engine has them computed."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    outputs: list[NDArray[Any]] = session.run(None, feeds)
    return outputs


def rounded(x: NDArray[np.float32], scale: float, kind: str | None) -> NDArray[np.float64]:
    """x as QuantizeLinear and DequantizeLinear leave it; the quotient is float32, as ONNX takes it."""
    if kind is None:
        return x.astype(np.float64)
    steps = x / np.float32(scale)
    if kind == "int8":
        return np.clip(np.rint(steps.astype(np.float64)), -128, 127) * np.float64(np.float32(scale))
    saturated = np.clip(steps, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    return saturated.astype(np.float64) * np.float64(np.float32(scale))


def array_of(model: ir.Model, name: str) -> NDArray[Any]:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()


def decoded(model: ir.Model, stem: str, block: int | None) -> NDArray[np.float64]:
    """The matrix [K, N] that the initializers tell, codes times the scale of their column or block."""
    codes, scales = (array_of(model, f"{stem}.{part}").astype(np.float64) for part in ("codes", "scales"))
    return codes * (scales if block is None else np.repeat(scales, block, axis=0)[: len(codes)])


def linear_layers(graph: onnx.GraphProto) -> list[dict[str, Any]]:
    """For each product with a rounded matrix: its sources and stem, what it reads before and after any rounding (x and
    read), and what it makes.
    """
    maker = {output: node for node in graph.node for output in node.output}
    names = {tensor.name for tensor in graph.initializer}
    found = []
    for node in graph.node:
        weight = maker.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or weight.op_type != "DequantizeLinear":
            continue
        x, y, read = node.input[0], node.output[0], node.input[0]
        if x in maker and maker[x].op_type == "DequantizeLinear":
            x = maker[maker[x].input[0]].input[0]
        stem = weight.input[0].removesuffix(".codes")
        first, *others = stem.split("+")
        first = first.removesuffix(".weight")
        prefix = first[: first.rindex(".") + 1] if others else ""
        sources = [f"{first}.weight", *(f"{prefix}{other}.weight" for other in others)]
        bias = next((n for n in graph.node if n.op_type == "Add" and y in n.input and set(n.input) & names), None)
        y = y if bias is None else bias.output[0]
        found.append({"sources": sources, "stem": stem, "x": x, "read": read, "y": y, "bias": bias is not None})
    return found
