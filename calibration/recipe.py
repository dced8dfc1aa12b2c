"""What to do to a model's projections, and what was found for them: the words that calibration's steps share."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.weights.blocks import BlockQuantized
from megrez.engines.weight_formats import WeightFormat

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is rounded.

    smoothing: "smoothquant", "awq" or None. gptq: whether columns of weights make up for the errors of others, and of
    earlier layers.
    inputs: "int8", "fp8" or "fp4" where the inputs of rounded projections are rounded too, with a static scale. form: a
    matrix's format by its tensor name; None leaves it exact.
    """

    smoothing: str | None
    gptq: bool
    inputs: str | None
    form: Callable[[str], WeightFormat | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What was found for one input and the projections that read it.

    exponent: of the smoothing, None where there is none. input_scale: None where the input stays exact. error: the
    outputs' squared error from this rounding alone, as a share of their squares, on the calibration text. zeros: input
    channels that are zero throughout the text, and rows of zeros of the rounded weights; their scales mean nothing.
    """

    exponent: float | None
    input_scale: float | None
    error: float
    zeros: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheScales:
    """One scale for all cached keys, or values, of a layer, in each number format an engine may cache in."""

    int8: float
    fp8: float


@dataclass(slots=True)
class Calibrated:
    """All that was found for a layer, or for the head.

    points: by the layer's prefix and the point, "model.layers.0.qkv". matrices: rounded projections, tensors: those
    that smoothing changed and nothing rounded; both by tensor name. caches: "model.layers.0.key" and "…value".
    """

    points: dict[str, Point] = field(default_factory=dict)
    matrices: dict[str, BlockQuantized] = field(default_factory=dict)
    tensors: dict[str, Float32] = field(default_factory=dict)
    caches: dict[str, CacheScales] = field(default_factory=dict)
