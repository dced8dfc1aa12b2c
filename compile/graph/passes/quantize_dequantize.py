"""Quantised projections in standard operators: DequantizeLinear of codes, and quantised inputs.

Reads no weight: the new initializers are lazy tensors, quantised when they are written. Knows no engine.
"""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from megrez.calibration.activations.data_types import FLOAT_TYPES, NVFP4_BLOCK, tensor_scale
from megrez.calibration.reference.model import EMBED_TOKENS
from megrez.calibration.weights.blocks import BlockQuantized
from megrez.compile.graph.passes.graph import constant, name_of, operand, shape_of, static_shape
from megrez.compile.graph.precision import LM_HEAD_TABLES, Precision
from megrez.compile.graph.quantizer import MatrixPlan, Quantizer
from megrez.compile.graph.weights import SOURCES, add_lazy, weight_of
from megrez.runtime.errors import UsageError

TENSORRT = "trt"
ZEROS = {"int8": np.array(0, np.int8), "fp8": np.array(0, ml_dtypes.float8_e4m3fn)}


class QuantizeDequantize(ir.passes.InPlacePass):
    """MatMul(x, w)  ->  MatMul(DequantizeLinear(QuantizeLinear(x)), DequantizeLinear(codes)).

    In NVFP4, block scales are E4M3 values that are dequantised first, and an input's block scales are computed at run
    time by TensorRT's own TRT_FP4DynamicQuantize: no other engine runs such a graph.

    Codes are [K, N] in their data type. Projections with the same input and input scale share one QuantizeLinear. The
    embedding stays float32 where tokens are looked up, and so does the LM head's input where it has no scale.

    input_scale: by the name of a checkpoint's matrix, the scale of its input. input_type: "int8", "fp8", "fp4", or
    None to leave inputs unquantised. Raises UsageError when a projection's input has no scale.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        precision: Precision,
        input_scale: Callable[[str], float | None] = lambda name: None,
        *,
        input_type: str | None = None,
    ) -> None:
        super().__init__()
        self.quantizer, self.precision = quantizer, precision
        self.input_scale, self.input_type = input_scale, input_type

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        quantized: dict[tuple[ir.Value, float], ir.Value] = {}
        modified = False
        for node in list(model.graph):
            weight = weight_of(node)
            if weight is None or (weight_format := self.precision.format_of(weight.meta[SOURCES][0])) is None:
                continue
            name = name_of(weight)
            n, k = static_shape(weight) if name == EMBED_TOKENS else reversed(static_shape(weight))
            plan = self.quantizer.plan(weight.meta[SOURCES], n, k, weight_format)
            if (scale := self._scale(plan.sources)) is not None:
                x = operand(node, 0)
                if (x, scale) not in quantized:
                    quantized[x, scale] = self._quantize_input(model, node, x, scale)
                node.replace_input_with(0, quantized[x, scale])
            node.replace_input_with(1, self._dequantized(model, node, name.removesuffix(".weight"), plan))
            if not weight.uses():
                model.graph.initializers.pop(name)
            modified = True
        return ir.passes.PassResult(model, modified=modified)

    def _scale(self, sources: tuple[str, ...]) -> float | None:
        """The scale of the input that all of `sources` share: the largest of theirs."""
        if self.input_type is None:
            return None
        scales = {name: scale for name in sources if (scale := self.input_scale(name)) is not None}
        missing = [name for name in sources if name not in scales]
        if not missing:
            return max(scales.values())
        if missing[0] in LM_HEAD_TABLES:
            return None
        raise UsageError(
            f"this target quantises inputs of projections to {self.input_type}, and {missing[0]} has no input scale: "
            "calibrate on a text first, or choose a target that quantises weights only"
        )

    def _quantize_input(self, model: ir.Model, before: ir.Node, x: ir.Value, scale: float) -> ir.Value:
        """x quantised and dequantised again."""
        assert self.input_type is not None
        step_name = f"{name_of(operand(before, 1)).removesuffix('.weight')}.input_scale"
        step = constant(model, step_name, ir.tensor(np.array(scale, np.float32), name=step_name))
        quantize = self._quantized_in_blocks if self.input_type == "fp4" else self._quantized
        nodes = quantize(model, x, step)
        model.graph.insert_before(before, nodes)
        nodes[-1].outputs[0].type, nodes[-1].outputs[0].shape = x.type, x.shape
        return nodes[-1].outputs[0]

    def _quantized(self, model: ir.Model, x: ir.Value, step: ir.Value) -> list[ir.Node]:
        """With a zero point, which gives the codes their data type."""
        zero_name = f"zero_{self.input_type}"
        zero = model.graph.initializers.get(zero_name)
        if zero is None:
            zero = constant(model, zero_name, ir.tensor(ZEROS[str(self.input_type)], name=zero_name))
        quantize = ir.node("QuantizeLinear", [x, step, zero])
        quantize.outputs[0].type, quantize.outputs[0].shape = zero.type, x.shape
        return [quantize, ir.node("DequantizeLinear", [quantize.outputs[0], step, zero])]

    def _quantized_in_blocks(self, model: ir.Model, x: ir.Value, step: ir.Value) -> list[ir.Node]:
        model.opset_imports[TENSORRT] = 1
        axis, width = len(shape_of(x)) - 1, shape_of(x)[-1]
        assert isinstance(width, int)
        attributes = {"axis": axis, "block_size": NVFP4_BLOCK}
        quantize = ir.node(
            "TRT_FP4DynamicQuantize",
            [x, step],
            {**attributes, "scale_type": ir.DataType.FLOAT8E4M3FN.value},
            domain=TENSORRT,
            num_outputs=2,
        )
        codes, scales = quantize.outputs
        codes.dtype, codes.shape = ir.DataType.FLOAT4E2M1, x.shape
        scales.dtype, scales.shape = ir.DataType.FLOAT8E4M3FN, ir.Shape([*shape_of(x)[:-1], width // NVFP4_BLOCK])
        spread = _typed(ir.node("DequantizeLinear", [scales, step]), scales.shape)
        return [quantize, spread, ir.node("DequantizeLinear", [codes, spread.outputs[0]], attributes)]

    def _dequantized(self, model: ir.Model, before: ir.Node, stem: str, plan: MatrixPlan) -> ir.Value:
        """The matrix [K, N] as a node's output, from codes and scales that are quantised when they are written."""
        assert not plan.zero_points and not plan.folded
        make, k, n, blocks = self.quantizer, plan.k, plan.n, plan.blocks
        codes = add_lazy(model, f"{stem}.codes", _code_type(plan), (k, n), lambda: signed_codes(make(plan)).T)
        nodes = []
        if plan.floating and plan.bits == 4:
            dequantized_scales = _block_scales(model, stem, plan, make)
            scales, attributes = dequantized_scales.outputs[0], {"axis": 0, "block_size": plan.block}
            nodes.append(dequantized_scales)
        elif plan.per_channel:
            scales = add_lazy(model, f"{stem}.scales", ir.DataType.FLOAT, (n,), lambda: make(plan).scales[:, 0])
            attributes = {"axis": 1}
        else:
            scales = add_lazy(model, f"{stem}.scales", ir.DataType.FLOAT, (blocks, n), lambda: make(plan).scales.T)
            attributes = {"axis": 0, "block_size": plan.block}
        nodes.append(_typed(ir.node("DequantizeLinear", [codes, scales], attributes), ir.Shape([k, n])))
        model.graph.insert_before(before, nodes)
        return nodes[-1].outputs[0]


def _block_scales(model: ir.Model, stem: str, plan: MatrixPlan, make: Quantizer) -> ir.Node:
    """The scales [blocks, N] of E2M1 blocks, as E4M3 values times a power of two."""
    shape = (plan.blocks, plan.n)

    def unit() -> np.float32:
        return tensor_scale(float(make(plan).scales.max()))

    def encoded() -> NDArray[np.generic]:
        return FLOAT_TYPES[8].encode(make(plan).scales.T / unit()).view(ml_dtypes.float8_e4m3fn)

    scales = add_lazy(model, f"{stem}.scales", ir.DataType.FLOAT8E4M3FN, shape, encoded)
    step = add_lazy(model, f"{stem}.scale", ir.DataType.FLOAT, (), lambda: np.array(unit()))
    return _typed(ir.node("DequantizeLinear", [scales, step]), ir.Shape(shape))


def _typed(node: ir.Node, shape: ir.Shape) -> ir.Node:
    node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, shape
    return node


def signed_codes(matrix: BlockQuantized) -> NDArray[np.generic]:
    """The codes [N, K] in their data type: E4M3, E2M1, int8 or int4."""
    assert matrix.zero_points is None and matrix.offsets is None
    if matrix.floating:
        return matrix.codes.view(ml_dtypes.float8_e4m3fn if matrix.bits == 8 else ml_dtypes.float4_e2m1fn)
    if matrix.bits == 8:
        return (matrix.codes ^ np.uint8(128)).view(np.int8)  # code - 128, without a wider type between
    return (matrix.codes.view(np.int8) - np.int8(8)).astype(ml_dtypes.int4)


def _code_type(plan: MatrixPlan) -> ir.DataType:
    if plan.floating:
        return ir.DataType.FLOAT8E4M3FN if plan.bits == 8 else ir.DataType.FLOAT4E2M1
    return ir.DataType.INT8 if plan.bits == 8 else ir.DataType.INT4
