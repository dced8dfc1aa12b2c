"""Quantise a matrix to a weight format, each weight to its nearest code; knows no text and no engine's layout.

A policy chooses the range of each block, which gives its scale and zero point: see ranges.py.
"""

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.data_types import FLOAT_TYPES, tensor_scale
from megrez.calibration.parallel import in_parts
from megrez.calibration.weights.blocks import BlockQuantized
from megrez.calibration.weights.ranges import (
    LARGEST_NVFP4_RATIO,
    RangePolicy,
    block_view,
    nearest_steps,
    positive_scale,
)
from megrez.engines.weight_formats import WeightFormat
from megrez.runtime.errors import CheckpointError

Float32 = NDArray[np.float32]
# Weights that a thread quantises at a time: temporaries of 1 MB, and the interpreter lock is held for short times.
TILE = 1 << 18
# A block's scale is 1 to LPBQ_STEPS times its channel's, in 4 bits (Qualcomm's LPBQ, for Hexagon NPUs).
LPBQ_STEPS = 16


def quantize_nearest(weight: Float32, weight_format: WeightFormat, policy: RangePolicy) -> BlockQuantized:
    """`weight` [N, K] in `weight_format`, its blocks' ranges chosen by `policy`.

    Raises CheckpointError for a weight that is not finite.
    """
    rows, columns = weight.shape
    block = weight_format.block or columns
    shape = rows, -(-columns // block)
    codes, scales = np.empty(weight.shape, np.uint8), np.empty(shape, np.float32)
    zero_points = np.empty(shape, np.uint8)
    unit = _tensor_scale(weight, weight_format)
    step = max(1, TILE // columns)

    def quantize_rows(part: slice) -> None:
        x = block_view(weight[part], block)  # [rows, blocks, block]
        if not np.isfinite(x).all():
            raise CheckpointError("a matrix to quantise holds a weight that is not finite: repair the checkpoint")
        scale, zero = policy.choose(x, weight_format, unit)
        if weight_format.nested:
            scale = _lpbq_scales(scale, (x != 0).any(axis=2))
        code = _codes(policy.divide(x, scale), zero, weight_format)
        codes[part] = code.reshape(len(x), -1)[:, :columns]
        scales[part], zero_points[part] = scale, zero

    in_parts(rows, step, quantize_rows)
    return BlockQuantized(
        bits=weight_format.bits,
        block=block,
        codes=codes,
        scales=scales,
        zero_points=None if weight_format.symmetric else zero_points,
        floating=weight_format.floating,
    )


def _tensor_scale(weight: Float32, weight_format: WeightFormat) -> np.float32 | None:
    """NVFP4's scale of the whole matrix, with headroom for the widest range tried; None in other formats."""
    if not weight_format.floating or weight_format.bits != 4:
        return None
    return tensor_scale(float(np.abs(weight).max(initial=0)) * LARGEST_NVFP4_RATIO / FLOAT_TYPES[4].largest)


def _lpbq_scales(scale: Float32, filled: NDArray[np.bool_]) -> Float32:
    """Scales [rows, blocks], each rounded to 1 to LPBQ_STEPS sixteenths of its row's largest.

    filled: which blocks are not all zeros; the scales of the others are ignored.
    """
    largest = np.where(filled, scale, 0).max(axis=1, keepdims=True)
    unit = positive_scale(largest / np.float32(LPBQ_STEPS))
    nearest: Float32 = np.clip(np.rint(scale / unit), 1, LPBQ_STEPS) * unit
    return nearest


def _codes(quotients: Float32, zero: Float32, weight_format: WeightFormat) -> NDArray[np.uint8]:
    """Codes of weight / scale [rows, blocks, block] for zero points [rows, blocks]."""
    if weight_format.floating:
        return FLOAT_TYPES[weight_format.bits].encode(quotients)
    steps = nearest_steps(quotients, zero[..., None], weight_format.bits)
    steps += zero[..., None]
    return steps.astype(np.uint8)
