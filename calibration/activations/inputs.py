"""Static scales of the inputs of projections, chosen by the error they leave; knows no layer and no text."""

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.data_types import BlockFloat4, Float8, Integer, NumberFormat

Float32 = NDArray[np.float32]
NUMBER_FORMATS: dict[str, NumberFormat] = {"int8": Integer(8), "fp8": Float8(), "fp4": BlockFloat4()}
# Shares of the largest magnitude that the largest number may stand for. A floating-point format repeats itself at
# every power of two and has range to spare, so finer steps over fewer octaves are worth more to it.
SHARES = {
    "int8": (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1),
    "fp8": tuple(2.0 ** (-step / 4) for step in range(12)),
    "fp4": (2.0,),  # blocks find scales of their own at run time, this one bounds them: with room for other texts
}


# Tokens on which candidates are compared; the range and the weights are of all of them.
SEARCH_TOKENS = 2048


def choose_scale(x: Float32, importance: Float32, inputs: str) -> float:
    """The scale for x [tokens, K] whose rounding and clipping errors matter least.

    importance: [K], what a squared error of each input costs: the squared weights that it meets. inputs: a key of
    NUMBER_FORMATS. An x of zeros gets 1.
    """
    number = NUMBER_FORMATS[inputs]
    largest = float(np.abs(x).max(initial=0))
    x = search_rows(x)
    best, least = 1.0, np.inf
    for share in SHARES[inputs] if largest > 0 else ():
        scale = float(np.float32(largest * share / number.largest))
        errors = round_to(x, scale, inputs) - x
        error = float(np.square(errors, out=errors).sum(axis=0).astype(np.float64) @ importance)
        if error < least:
            best, least = scale, error
    return best


# Where in an octave a channel can be put.
ALIGNMENTS = tuple(2.0 ** (-step / 16) for step in range(16))


def align_channels(x: Float32, scale: float, inputs: str) -> Float32:
    """Factors [K] from (0.5, 1] for the channels of x [tokens, K], after which rounding with this scale costs least.

    A floating-point number's step is a larger share of it behind a power of two than before the next one, so a channel
    whose magnitudes keep together is best put where the steps are relatively fine. What makes x multiplies by the
    factors, the weights that read it divide by them.
    """
    x = search_rows(x)
    best, least = np.ones(x.shape[1], np.float32), np.full(x.shape[1], np.inf)
    for alignment in ALIGNMENTS:
        factor = np.float32(alignment)
        errors = round_to(x * factor, scale, inputs) / factor - x
        error = np.square(errors, out=errors).sum(axis=0, dtype=np.float64)
        best, least = np.where(error < least, factor, best), np.minimum(error, least)
    return best


def round_to(x: Float32, scale: float, inputs: str) -> Float32:
    """What x becomes when it is stored in the number format with this scale: float32, x's shape."""
    rounded = NUMBER_FORMATS[inputs].round(x / np.float32(scale))
    rounded *= np.float32(scale)
    return rounded


def search_rows(x: Float32) -> Float32:
    """Evenly spaced rows of x, about SEARCH_TOKENS. Row 0 is among them: activations are often largest there."""
    return x[:: max(1, -(-len(x) // SEARCH_TOKENS))]
