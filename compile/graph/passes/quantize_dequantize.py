"""Projections in a target's formats as standard operators: DequantizeLinear of codes, and inputs rounded before them.

Reads no weight: the new initializers are recipes that quantise when they are written. Knows no engine.
"""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from megrez.calibration.activations.data_types import FLOAT_TYPES, NVFP4_BLOCK, tensor_scale
from megrez.calibration.weights.blocks import BlockQuantized
from megrez.compile.graph.passes.graph import constant, name_of, operand, shape_of, static_shape
from megrez.compile.graph.precision import EMBED_TOKENS, LM_HEAD_TABLES, Precision
from megrez.compile.graph.quantizer import MatrixPlan, Quantizer
from megrez.compile.graph.weights import SOURCES, add_lazy, weight_of
from megrez.runtime.errors import UsageError

TENSORRT = "trt"
ZEROS = {"int8": np.array(0, np.int8), "fp8": np.array(0, ml_dtypes.float8_e4m3fn)}


class QuantizeDequantize(ir.passes.InPlacePass):
    """MatMul(x, w)  ->  MatMul(DequantizeLinear(QuantizeLinear(x)), DequantizeLinear(codes)).

    In NVFP4 scales of blocks are E4M3 values that are dequantised first, and the scales of an input's blocks are found
    as it is rounded, by TensorRT's own TRT_FP4DynamicQuantize: no other engine runs such a graph.

    The codes stay [K, N] in their own type. Products of the same x with the same scale share its rounding. The
    embedding that tokens are looked up in stays float32, and so does a head's input that no scale is known of.

    input_scale: by the name of a checkpoint's matrix, the scale of what it multiplies. inputs: "int8", "fp8", "fp4",
    or None to leave them. Raises UsageError when a projection's input has no scale.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        precision: Precision,
        input_scale: Callable[[str], float | None] = lambda name: None,
        *,
        inputs: str | None = None,
    ) -> None:
        super().__init__()
        self.quantizer, self.precision, self.input_scale, self.inputs = quantizer, precision, input_scale, inputs

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        rounded: dict[tuple[ir.Value, float], ir.Value] = {}
        modified = False
        for node in list(model.graph):
            weight = weight_of(node)
            if weight is None or (wanted := self.precision.wanted(weight.meta[SOURCES][0])) is None:
                continue
            name = name_of(weight)
            n, k = static_shape(weight) if name == EMBED_TOKENS else reversed(static_shape(weight))
            plan = self.quantizer.plan(weight.meta[SOURCES], n, k, wanted)
            if (scale := self._scale(plan.sources)) is not None:
                x = operand(node, 0)
                if (x, scale) not in rounded:
                    rounded[x, scale] = self._round(model, node, x, scale)
                node.replace_input_with(0, rounded[x, scale])
            node.replace_input_with(1, self._dequantized(model, node, name.removesuffix(".weight"), plan))
            if not weight.uses():
                model.graph.initializers.pop(name)
            modified = True
        return ir.passes.PassResult(model, modified=modified)

    def _scale(self, sources: tuple[str, ...]) -> float | None:
        """The scale that holds the inputs of all of `sources`, which are one and the same."""
        if self.inputs is None:
            return None
        known = {name: scale for name in sources if (scale := self.input_scale(name)) is not None}
        missing = [name for name in sources if name not in known]
        if not missing:
            return max(known.values())
        if missing[0] in LM_HEAD_TABLES:
            return None
        raise UsageError(
            f"this target rounds what projections read to {self.inputs}, and no range of it is known for {missing[0]}: "
            "calibrate on a text first, or choose a target that rounds weights only"
        )

    def _round(self, model: ir.Model, before: ir.Node, x: ir.Value, scale: float) -> ir.Value:
        """x as it is after its rounding."""
        assert self.inputs is not None
        step_name = f"{name_of(operand(before, 1)).removesuffix('.weight')}.input_scale"
        step = constant(model, step_name, ir.tensor(np.array(scale, np.float32), name=step_name))
        nodes = self._rounded_in_blocks(model, x, step) if self.inputs == "fp4" else self._rounded(model, x, step)
        model.graph.insert_before(before, nodes)
        nodes[-1].outputs[0].type, nodes[-1].outputs[0].shape = x.type, x.shape
        return nodes[-1].outputs[0]

    def _rounded(self, model: ir.Model, x: ir.Value, step: ir.Value) -> list[ir.Node]:
        """With a zero point, whose data type is that of the codes."""
        zero_name = f"zero_{self.inputs}"
        zero = model.graph.initializers.get(zero_name)
        if zero is None:
            zero = constant(model, zero_name, ir.tensor(ZEROS[str(self.inputs)], name=zero_name))
        quantize = ir.node("QuantizeLinear", [x, step, zero])
        quantize.outputs[0].type, quantize.outputs[0].shape = zero.type, x.shape
        return [quantize, ir.node("DequantizeLinear", [quantize.outputs[0], step, zero])]

    def _rounded_in_blocks(self, model: ir.Model, x: ir.Value, step: ir.Value) -> list[ir.Node]:
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
        """The matrix [K, N] as a node's output, from codes and scales that are made when they are written."""
        assert not plan.zero_points and not plan.folded
        make, k, n, blocks = self.quantizer, plan.k, plan.n, plan.blocks
        codes = add_lazy(model, f"{stem}.codes", _code_type(plan), (k, n), lambda: signed_codes(make(plan)).T)
        nodes = []
        if plan.floating and plan.bits == 4:
            exact = _block_scales(model, stem, plan, make)
            scales, attributes = exact.outputs[0], {"axis": 0, "block_size": plan.block}
            nodes.append(exact)
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
    """The scales [blocks, N] of E2M1 blocks, as E4M3 numbers times a power of two."""
    shape = (plan.blocks, plan.n)

    def unit() -> np.float32:
        return tensor_scale(float(make(plan).scales.max()))

    def numbers() -> NDArray[np.generic]:
        return FLOAT_TYPES[8].encode(make(plan).scales.T / unit()).view(ml_dtypes.float8_e4m3fn)

    scales = add_lazy(model, f"{stem}.scales", ir.DataType.FLOAT8E4M3FN, shape, numbers)
    step = add_lazy(model, f"{stem}.scale", ir.DataType.FLOAT, (), lambda: np.array(unit()))
    return _typed(ir.node("DequantizeLinear", [scales, step]), ir.Shape(shape))


def _typed(node: ir.Node, shape: ir.Shape) -> ir.Node:
    node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, shape
    return node


def signed_codes(matrix: BlockQuantized) -> NDArray[np.generic]:
    """The codes [N, K] as what they count: E4M3, E2M1, int8 or int4 numbers."""
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
