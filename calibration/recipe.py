"""How a model's projections are to be quantised, and the result of calibration; knows no algorithm and no file."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.weights.blocks import BlockQuantized
from megrez.engines.weight_formats import WeightFormat

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is quantised.

    smoothing: "smoothquant", "awq" or None. gptq: whether weights are quantised by GPTQ with asymmetric calibration,
    else round to nearest.
    input_type: "int8", "fp8" or "fp4" where the inputs of quantised projections are quantised too, with a static scale;
    else None. weight_format: a matrix's format by its tensor name; None leaves it in float32.
    """

    smoothing: str | None
    gptq: bool
    input_type: str | None
    weight_format: Callable[[str], WeightFormat | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResult:
    """The calibration of one projection group, the projections that read one input.

    smoothing_exponent: None where the input is not smoothed. input_scale: None where the input stays in float32.
    relative_error: the squared error of the outputs due to quantising this group alone, relative to their squares, on
    the calibration data. zero_channels: input channels that are zero on all of the data, and all-zero rows of the
    quantised weights; their scales are arbitrary.
    """

    smoothing_exponent: float | None
    input_scale: float | None
    relative_error: float
    zero_channels: int


@dataclass(slots=True)
class Calibrated:
    """The calibration of a layer, or of the LM head.

    groups: by the layer's prefix and the projection group, "model.layers.0.qkv". matrices: quantised projections.
    tensors: those that smoothing changed and that are not quantised. Both by tensor name.
    """

    groups: dict[str, GroupResult] = field(default_factory=dict)
    matrices: dict[str, BlockQuantized] = field(default_factory=dict)
    tensors: dict[str, Float32] = field(default_factory=dict)
