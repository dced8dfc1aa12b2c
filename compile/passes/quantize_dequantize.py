"""Projections in a target's formats as standard operators: DequantizeLinear of codes, and inputs rounded before them.

Reads no weight: the new initializers are recipes that quantise when they are written. Knows no engine.
"""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from megrez.calibration.blocks import BlockQuantized
from megrez.compile.passes.graph import constant, name_of, operand, static_shape
from megrez.compile.precision import EMBEDDING, HEAD, Precision
from megrez.compile.quantizer import MatrixPlan, Quantizer
from megrez.compile.weights import SOURCES, add_lazy, weight_of
from megrez.runtime.errors import UsageError

ZEROS = {"int8": np.array(0, np.int8), "fp8": np.array(0, ml_dtypes.float8_e4m3fn)}


class QuantizeDequantize(ir.passes.InPlacePass):
    """MatMul(x, w)  ->  MatMul(DequantizeLinear(QuantizeLinear(x)), DequantizeLinear(codes)).

    The codes stay [K, N] in their own type. Products of the same x with the same scale share its rounding. The
    embedding that tokens are looked up in stays float32, and so does a head's input that no scale is known of.

    input_scale: by the name of a checkpoint's matrix, the scale of what it multiplies. inputs: "int8", "fp8", or None
    to leave them. Raises UsageError when a projection's input has no scale.
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
            n, k = static_shape(weight) if name == EMBEDDING else reversed(static_shape(weight))
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
        if missing[0] in HEAD:
            return None
        raise UsageError(
            f"this target rounds what projections read to {self.inputs}, and no range of it is known for {missing[0]}: "
            "calibrate on a text first, or choose a target that rounds weights only"
        )

    def _round(self, model: ir.Model, before: ir.Node, x: ir.Value, scale: float) -> ir.Value:
        """DequantizeLinear(QuantizeLinear(x)), with a zero point that tells the type."""
        assert self.inputs is not None
        zero_name = f"zero_{self.inputs}"
        zero = model.graph.initializers.get(zero_name)
        if zero is None:
            zero = constant(model, zero_name, ir.tensor(ZEROS[self.inputs], name=zero_name))
        step_name = f"{name_of(operand(before, 1)).removesuffix('.weight')}.input_scale"
        step = constant(model, step_name, ir.tensor(np.array(scale, np.float32), name=step_name))
        quantize = ir.node("QuantizeLinear", [x, step, zero])
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], step, zero])
        model.graph.insert_before(before, [quantize, dequantize])
        quantize.outputs[0].type, quantize.outputs[0].shape = zero.type, x.shape
        dequantize.outputs[0].type, dequantize.outputs[0].shape = x.type, x.shape
        return dequantize.outputs[0]

    def _dequantized(self, model: ir.Model, before: ir.Node, stem: str, plan: MatrixPlan) -> ir.Value:
        """The matrix [K, N] as a node's output, from codes and scales that are made when they are written."""
        assert not plan.zero_points and not plan.folded
        make, k, n, blocks = self.quantizer, plan.k, plan.n, plan.blocks
        codes = add_lazy(model, f"{stem}.codes", _code_type(plan), (k, n), lambda: signed_codes(make(plan)).T)
        if plan.per_channel:
            scales = add_lazy(model, f"{stem}.scales", ir.DataType.FLOAT, (n,), lambda: make(plan).scales[:, 0])
            attributes = {"axis": 1}
        else:
            scales = add_lazy(model, f"{stem}.scales", ir.DataType.FLOAT, (blocks, n), lambda: make(plan).scales.T)
            attributes = {"axis": 0, "block_size": plan.block}
        node = ir.node("DequantizeLinear", [codes, scales], attributes)
        node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, ir.Shape([k, n])
        model.graph.insert_before(before, node)
        return node.outputs[0]


def signed_codes(matrix: BlockQuantized) -> NDArray[np.generic]:
    """The codes [N, K] as what they count: E4M3, int8 or int4 numbers."""
    assert matrix.zero_points is None and matrix.offsets is None
    if matrix.float8:
        return matrix.codes.view(ml_dtypes.float8_e4m3fn)
    if matrix.bits == 8:
        return (matrix.codes ^ np.uint8(128)).view(np.int8)  # code - 128, without a wider type between
    return (matrix.codes.view(np.int8) - np.int8(8)).astype(ml_dtypes.int4)


def _code_type(plan: MatrixPlan) -> ir.DataType:
    if plan.float8:
        return ir.DataType.FLOAT8E4M3FN
    return ir.DataType.INT8 if plan.bits == 8 else ir.DataType.INT4
