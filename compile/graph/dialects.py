"""Dialects: lists of passes that rewrite the canonical graph for an engine; knows no file."""

from collections.abc import Callable

import onnx_ir as ir
import onnx_ir.passes.common as common

from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.families.config import ModelConfig
from megrez.compile.graph.passes.all_positions import AllPositions
from megrez.compile.graph.passes.cache_format import CacheFormat
from megrez.compile.graph.passes.decoder_layer import DecoderLayer
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
    """Raise UsageError for a shape that the operators of the target's dialect do not support."""
    if target.dialect == "ort" and config.head_dim % HEAD_MULTIPLE:
        raise UsageError(
            f"{target.name} needs a head_dim that is a multiple of {HEAD_MULTIPLE}, this model has {config.head_dim}, "
            "which ONNX Runtime's GroupQueryAttention does not support: choose a trt-* target"
        )


def lower(model: ir.Model, checkpoint: Checkpoint, target: Target, input_scale: InputScale = lambda name: None) -> None:
    """Rewrite the bound canonical graph in place for `target`.

    input_scale: by a weight's checkpoint name, the scale of its projection's input; None where there is none. Raises
    UsageError where the target needs a scale that is None.
    """
    passes = PASSES[target.dialect](checkpoint, target, input_scale)
    for step in (*passes, common.RemoveUnusedNodesPass()):  # ir's Sequential would wrap the errors
        step(model)


def _ort(checkpoint: Checkpoint, target: Target, input_scale: InputScale) -> list[ir.passes.InPlacePass]:
    """For CPUs, with SwiGLU and ragged batches; for GPUs in float16, without either and without quantised inputs."""
    precision = Precision(checkpoint, target)
    on_gpu = target.half
    passes: list[ir.passes.InPlacePass] = [
        FuseProjections(checkpoint, precision.fusion_key),
        GroupQueryAttention(checkpoint.config, ragged=not on_gpu),
        QuantizeWeights(Quantizer(checkpoint), precision, accuracy_level=0 if on_gpu else INT8_ARITHMETIC),
        DeclareMicrosoft(),
    ]
    if on_gpu:
        return [*passes, SkipNorm(), HalfPrecision()]
    # what earlier passes left unused would be seen as other readers of a layer's values
    layers = [common.RemoveUnusedNodesPass(), DecoderLayer()]
    return [*passes, SwiGLU(), CacheFormat(target.kv_dtype), *layers, SkipNorm()]


def _portable(checkpoint: Checkpoint, target: Target, input_scale: InputScale) -> list[ir.passes.InPlacePass]:
    precision = Precision(checkpoint, target)
    quantizer = Quantizer(checkpoint, dequantize_linear=True)
    return [
        FuseProjections(checkpoint, precision.fusion_key),
        NameLayers(),
        QuantizeDequantize(quantizer, precision, input_scale, input_type=target.input_type),
    ]


def _qnn(checkpoint: Checkpoint, target: Target, input_scale: InputScale) -> list[ir.passes.InPlacePass]:
    """The passes that do not depend on the tokens of a step; megrez.compile.graph.static.graphs does the rest."""
    return [
        AllPositions(),
        NameBoundaries(checkpoint.config.num_hidden_layers),
        NameLayers(),
        SplitRotary(),
        QuantizeDequantize(Quantizer(checkpoint, dequantize_linear=True), Precision(checkpoint, target)),
    ]


class DeclareMicrosoft(ir.passes.InPlacePass):
    """Import the com.microsoft operators that earlier passes added."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        model.opset_imports[MICROSOFT] = 1
        return ir.passes.PassResult(model, modified=True)


PASSES = {"ort": _ort, "portable": _portable, "qnn": _qnn}
