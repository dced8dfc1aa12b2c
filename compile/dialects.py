"""A dialect is a list of passes from the canonical graph to what an engine runs best; knows no file."""

import onnx_ir as ir
import onnx_ir.passes.common as common

from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.passes.fuse_projections import FuseProjections
from megrez.compile.passes.graph import MICROSOFT
from megrez.compile.passes.group_query_attention import GroupQueryAttention
from megrez.compile.passes.quantize_weights import QuantizeWeights
from megrez.compile.passes.skip_norm import SkipNorm
from megrez.compile.precision import Precision
from megrez.compile.quantizer import Quantizer
from megrez.engines.targets import Target


def lower(model: ir.Model, checkpoint: Checkpoint, target: Target) -> None:
    """Rewrite the bound canonical graph in place for `target`."""
    ir.passes.Sequential(*PASSES[target.dialect](checkpoint, target), common.RemoveUnusedNodesPass())(model)


def _ort(checkpoint: Checkpoint, target: Target) -> list[ir.passes.InPlacePass]:
    precision = Precision(checkpoint, target)
    return [
        FuseProjections(checkpoint, precision.group),
        GroupQueryAttention(checkpoint.config),
        SkipNorm(),
        QuantizeWeights(Quantizer(checkpoint), precision),
        DeclareMicrosoft(),
    ]


class DeclareMicrosoft(ir.passes.InPlacePass):
    """Import the com.microsoft operators that the passes before it brought in."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        model.opset_imports[MICROSOFT] = 1
        return ir.passes.PassResult(model, modified=True)


PASSES = {"ort": _ort}
