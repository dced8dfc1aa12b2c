"""Static scales of projections' inputs, chosen by quantisation error; knows no layer and no text."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.data_types import E4M3, NVFP4, DataType, Integer
from megrez.calibration.parallel import in_parts

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
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
SEARCH_TOKENS = 1024
# Values that a thread quantises at a time, of 256 kB: what an operation writes, the next reads from the cache.
PART = 1 << 16
# Candidate positions of a channel within an octave.
ALIGNMENTS = tuple(2.0 ** (-step / 16) for step in range(16))


def choose_scale(x: Float32, importance: Float32, input_type: str) -> float:
    """The scale for x [tokens, K] with the least weighted squared error of rounding and clipping.

    importance: [K], the weight of each channel's squared error: the sum of its squared weights.
    input_type: a key of INPUT_TYPES. An x of zeros gets 1.
    """
    largest = float(max(x.max(initial=0), -x.min(initial=0)))
    if largest == 0:
        return 1.0
    full = largest / INPUT_TYPES[input_type].largest
    scales = [float(np.float32(full * ratio)) for ratio in CLIPPING_RATIOS[input_type]]
    errors = _squared_errors(search_tokens(x), scales, input_type) @ importance.astype(np.float64)
    return scales[int(errors.argmin())]


def align_channels(x: Float32, scale: float, input_type: str) -> Float32:
    """Factors [K] in (0.5, 1] for the channels of x [tokens, K] with the least error at this scale.

    The relative step of a floating-point type is largest just above a power of two and least just below the next, so a
    channel whose magnitudes differ little is best placed just below one. The norm before multiplies by the factors, the
    projections that read x divide their weights by them.
    """
    # x * factor, quantised with a scale, is x, quantised with scale / factor, times the factor.
    errors = _squared_errors(search_tokens(x), [scale / factor for factor in ALIGNMENTS], input_type)
    best: Float32 = np.array(ALIGNMENTS, np.float32)[errors.argmin(axis=0)]
    return best


def fake_quantize(x: Float32, scale: float, input_type: str) -> Float32:
    """x [tokens, K] quantised with this scale and dequantised again: float32, x's shape."""
    quantized = np.empty(x.shape, np.float32)

    def quantize(part: slice) -> None:
        quantized[part] = _fake_quantized(x[part], scale, input_type)

    in_parts(len(x), _rows_of_part(x), quantize)
    return quantized


def _fake_quantized(x: Float32, scale: float, input_type: str) -> Float32:
    quantized = INPUT_TYPES[input_type].round(x / np.float32(scale))
    quantized *= np.float32(scale)
    return quantized


def _squared_errors(x: Float32, scales: Sequence[float], input_type: str) -> Float64:
    """The sum over the tokens of x [tokens, K] of each channel's squared error, by scale: [scales, K]."""

    def errors_of(part: slice) -> Float32:
        sums = np.empty((len(scales), x.shape[1]), np.float32)
        for at, scale in enumerate(scales):
            errors = _fake_quantized(x[part], scale, input_type)
            errors -= x[part]
            errors *= errors
            errors.sum(axis=0, out=sums[at])
        return sums

    total: Float64 = np.sum(in_parts(len(x), _rows_of_part(x), errors_of), axis=0, dtype=np.float64)
    return total


def _rows_of_part(x: Float32) -> int:
    columns: int = x.shape[1]
    return max(1, PART // columns)


def search_tokens(x: Float32) -> Float32:
    """About SEARCH_TOKENS evenly spaced tokens of x, the first among them: activations are often largest there."""
    return x[:: max(1, -(-len(x) // SEARCH_TOKENS))]
