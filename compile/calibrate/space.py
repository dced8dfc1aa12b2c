"""Disk space of a bundle and of its calibration's files, estimated from shapes before any work."""

import math
from pathlib import Path

from megrez.compile.bundle.describe import BYTES
from megrez.compile.bundle.output import check_space
from megrez.compile.calibrate.text import TextRequest, sample_length
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.checkpoint.tensors import expected_tensors
from megrez.compile.graph.precision import Precision
from megrez.compile.graph.quantizer import Quantizer
from megrez.engines.targets import Target

SCALE_BYTES = 4
# Hidden states per token: of the full-precision and the quantised model, new ones written before old ones are removed.
STREAMS, COPIES = 2, 2


def estimate_weights(checkpoint: Checkpoint, target: Target) -> int:
    """Bytes of the weights in the target's formats; never more than what will be written."""
    precision, quantizer = (
        Precision(checkpoint, target),
        Quantizer(checkpoint, dequantize_linear=target.dequantizes),
    )
    unquantised = BYTES[target.float_dtype]
    if target.quantizes_all_activations:
        unquantised = min(unquantised, 2)
    total = 0
    for name, shape in expected_tensors(checkpoint.config).items():
        weight_format = precision.format_of(name) if len(shape) == 2 else None
        if weight_format is None:
            total += math.prod(shape) * unquantised
            continue
        plan = quantizer.plan((name,), shape[0], shape[1], weight_format)
        total += plan.n * (plan.k * plan.bits // 8 + (0 if plan.nested or plan.floating else plan.blocks * SCALE_BYTES))
    return total


def check_space_to_calibrate(
    checkpoint: Checkpoint, target: Target, request: TextRequest, context: int, path: Path, *, bundle: bool
) -> None:
    """Raise BundleError if the disk of `path` cannot hold the calibration's files, and with `bundle` the bundle too."""
    weights = estimate_weights(checkpoint, target)
    length = sample_length(request, context)
    tokens = request.sample_count * length + request.fidelity_tokens
    hidden = STREAMS * COPIES * tokens * checkpoint.config.hidden_size * 4
    needed = "the bundle and its calibration need" if bundle else "the calibration needs"
    check_space(path, (2 if bundle else 1) * weights + hidden, needed)
