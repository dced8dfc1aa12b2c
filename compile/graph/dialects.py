"""A dialect is a list of passes from the canonical graph to what an engine runs best; knows no file."""

from collections.abc import Callable

import onnx_ir as ir
import onnx_ir.passes.common as common

from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.families.config import ModelConfig
from megrez.compile.graph.passes.all_positions import AllPositions
from megrez.compile.graph.passes.fuse_projections import FuseProjections
from megrez.compile.graph.passes.graph import MICROSOFT
from megrez.compile.graph.passes.group_query_attention import HEAD_MULTIPLE, GroupQueryAttention
from megrez.compile.graph.passes.half_precision import HalfPrecision
from megrez.compile.graph.passes.name_boundaries import NameBoundaries
from megrez.compile.graph.passes.name_layers import NameLayers
from megrez.compile.graph.passes.quantize_dequantize import QuantizeDequantize
from megrez.compile.graph.passes.quantize_weights import INT8_ARITHMETIC, QuantizeWeights
from megrez.compile.graph.passes.skip_norm import SkipNorm
from megrez.compile.graph.passes.split_rotary import SplitRotary
from megrez.compile.graph.passes.swiglu import SwiGLU
from megrez.compile.graph.precision import Precision
from megrez.compile.graph.quantizer import Quantizer
from megrez.engines.targets import Target
from megrez.runtime.errors import UsageError

InputScale = Callable[[str], float | None]


def check_shape(config: ModelConfig, target: Target) -> None:
    """Raise UsageError for a shape that the operators of the target's dialect do not take."""
    if target.dialect == "ort" and config.head_dim % HEAD_MULTIPLE:
        raise UsageError(
            f"{target.name} takes heads whose width is a multiple of {HEAD_MULTIPLE}, this model's have "
            f"{config.head_dim}, which ONNX Runtime's GroupQueryAttention refuses: a trt-* target needs no such width"
        )


def lower(model: ir.Model, checkpoint: Checkpoint, target: Target, input_scale: InputScale = lambda name: None) -> None:
    """Rewrite the bound canonical graph in place for `target`.

    input_scale: the scale of what a projection, given by its weight's checkpoint name, reads; None where none was
    measured. Raises UsageError when the target needs one that is None.
    """
    passes = PASSES[target.dialect](checkpoint, target, input_scale)
    for one in (*passes, common.RemoveUnusedNodesPass()):  # ir's Sequential would wrap the errors
        one(model)


def _ort(checkpoint: Checkpoint, target: Target, input_scale: InputScale) -> list[ir.passes.InPlacePass]:
    """For CPUs with what our own kernels know beside ONNX Runtime's. For GPUs in float16, with what their kernels take:
    rows of one length each, products of rounded weights alone.
    """
    precision = Precision(checkpoint, target)
    on_gpu = target.half
    passes: list[ir.passes.InPlacePass] = [
        FuseProjections(checkpoint, precision.group),
        GroupQueryAttention(checkpoint.config, ragged=not on_gpu),
        SkipNorm(),
        QuantizeWeights(Quantizer(checkpoint), precision, accuracy_level=0 if on_gpu else INT8_ARITHMETIC),
        DeclareMicrosoft(),
    ]
    return [*passes, HalfPrecision() if on_gpu else SwiGLU()]


def _portable(checkpoint: Checkpoint, target: Target, input_scale: InputScale) -> list[ir.passes.InPlacePass]:
    precision = Precision(checkpoint, target)
    quantizer = Quantizer(checkpoint, exact=True)
    return [
        FuseProjections(checkpoint, precision.group),
        NameLayers(),
        QuantizeDequantize(quantizer, precision, input_scale, inputs=target.inputs),
    ]


def _qnn(checkpoint: Checkpoint, target: Target, input_scale: InputScale) -> list[ir.passes.InPlacePass]:
    """What does not depend on how many tokens a step takes; megrez.compile.graph.static.graphs does the rest."""
    return [
        AllPositions(),
        NameBoundaries(checkpoint.config.num_hidden_layers),
        NameLayers(),
        SplitRotary(),
        QuantizeDequantize(Quantizer(checkpoint, exact=True), Precision(checkpoint, target)),
    ]


class DeclareMicrosoft(ir.passes.InPlacePass):
    """Import the com.microsoft operators that the passes before it brought in."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        model.opset_imports[MICROSOFT] = 1
        return ir.passes.PassResult(model, modified=True)


PASSES = {"ort": _ort, "portable": _portable, "qnn": _qnn}
