"""Static scales of projections' inputs, chosen by quantisation error; knows no layer and no text."""

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.data_types import E4M3, NVFP4, DataType, Integer

Float32 = NDArray[np.float32]
# By a target's `input_type`.
INPUT_TYPES: dict[str, DataType] = {"int8": Integer(8), "fp8": E4M3(), "fp4": NVFP4()}
# Clipping ratios: the range's end as a share of the largest magnitude. A floating-point type's values repeat at every
# power of two and have range to spare, so finer steps over fewer octaves gain more.
CLIPPING_RATIOS = {
    "int8": (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1),
    "fp8": tuple(2.0 ** (-step / 4) for step in range(12)),
    "fp4": (2.0,),  # an upper bound of the block scales, which are computed at run time: with headroom for other texts
}
# Tokens on which candidates are compared; the range is that of all tokens.
SEARCH_TOKENS = 2048
# Candidate positions of a channel within an octave.
ALIGNMENTS = tuple(2.0 ** (-step / 16) for step in range(16))


def choose_scale(x: Float32, importance: Float32, input_type: str) -> float:
    """The scale for x [tokens, K] with the least weighted squared error of rounding and clipping.

    importance: [K], the weight of each channel's squared error: the sum of its squared weights.
    input_type: a key of INPUT_TYPES. An x of zeros gets 1.
    """
    data_type = INPUT_TYPES[input_type]
    largest = float(np.abs(x).max(initial=0))
    x = search_tokens(x)
    best, least = 1.0, np.inf
    for ratio in CLIPPING_RATIOS[input_type] if largest > 0 else ():
        scale = float(np.float32(largest * ratio / data_type.largest))
        errors = fake_quantize(x, scale, input_type) - x
        error = float(np.square(errors, out=errors).sum(axis=0).astype(np.float64) @ importance)
        if error < least:
            best, least = scale, error
    return best


def align_channels(x: Float32, scale: float, input_type: str) -> Float32:
    """Factors [K] in (0.5, 1] for the channels of x [tokens, K] with the least error at this scale.

    The relative step of a floating-point type is largest just above a power of two and least just below the next, so a
    channel whose magnitudes differ little is best placed just below one. The norm before multiplies
    by the factors, the projections that read x divide their weights by them.
    """
    x = search_tokens(x)
    best, least = np.ones(x.shape[1], np.float32), np.full(x.shape[1], np.inf)
    for alignment in ALIGNMENTS:
        factor = np.float32(alignment)
        errors = fake_quantize(x * factor, scale, input_type) / factor - x
        error = np.square(errors, out=errors).sum(axis=0, dtype=np.float64)
        best, least = np.where(error < least, factor, best), np.minimum(error, least)
    return best


def fake_quantize(x: Float32, scale: float, input_type: str) -> Float32:
    """x quantised with this scale and dequantised again: float32, x's shape."""
    quantized = INPUT_TYPES[input_type].round(x / np.float32(scale))
    quantized *= np.float32(scale)
    return quantized


def search_tokens(x: Float32) -> Float32:
    """About SEARCH_TOKENS evenly spaced tokens of x, the first among them: activations are often largest there."""
    return x[:: max(1, -(-len(x) // SEARCH_TOKENS))]
