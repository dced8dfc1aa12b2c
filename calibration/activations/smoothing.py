"""Per-channel factors moved from activations to weights, or back, before quantisation; knows no layer.

(x / s) @ (w * s)^T is x @ w^T for any s [K] > 0; the layer before can divide by s at no cost. Sources: Xiao et al.,
SmoothQuant (arXiv 2211.10438): s = max|x|^a / max|w|^(1 - a); Lin et al., AWQ (arXiv 2306.00978): s = mean|x|^a. The
exponent a is searched; no smoothing is one of the candidates.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.inputs import choose_scale, fake_quantize, search_tokens
from megrez.calibration.parallel import in_parts
from megrez.calibration.weights.nearest import quantize_nearest
from megrez.calibration.weights.ranges import AbsMax, WeightedSearch
from megrez.engines.weight_formats import WeightFormat

Float32 = NDArray[np.float32]
EXPONENTS = {
    "smoothquant": tuple(step / 10 for step in range(11)),
    "awq": tuple(step / 10 for step in range(1, 11)),
}
# Rows of weights on which exponents are compared.
SEARCH_ROWS = 512
# Every so many tokens are used to choose a candidate's input scale; all are quantised with it.
SCALE_STRIDE = 2
SMALLEST = np.float32(1e-6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothing:
    """factors: s, float32 [K]. exponent: None where not smoothing was best; the factors are then 1."""

    factors: Float32
    exponent: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothingSearch:
    """The quantisation under which candidates are compared. method: a key of EXPONENTS.

    input_type: as in choose_scale, or None for float32. shared: int [K], channels of equal value must have
    the same factor; None where each has its own.
    """

    method: str
    weight_format: WeightFormat
    input_type: str | None
    shared: NDArray[np.int64] | None = None


def search_smoothing(x: Float32, weight: Float32, search: SmoothingSearch) -> Smoothing:
    """The smoothing of inputs x [tokens, K] and `weight` [N, K] with the least error in x @ weight^T.

    Channel magnitudes are those of all of x; errors are compared on a part of it.
    """
    input_size, weight_size = _channel_sizes(x, weight, search)
    x = search_tokens(x)
    rows = weight[:: -(-len(weight) // SEARCH_ROWS)]
    expected = x @ rows.T
    candidates = [Smoothing(factors=np.ones(x.shape[1], np.float32), exponent=None)]
    for exponent in EXPONENTS[search.method]:
        factors = _factors(input_size, weight_size, exponent, search.method)
        candidates.append(Smoothing(factors=factors, exponent=exponent))

    def error_of(part: slice) -> float:
        return _error(x, rows, expected, candidates[part.start].factors, search)

    return candidates[int(np.argmin(in_parts(len(candidates), 1, error_of)))]


def _channel_sizes(x: Float32, weight: Float32, search: SmoothingSearch) -> tuple[Float32, Float32]:
    """The mean (AWQ) or largest magnitude of each input channel, and the largest of its weights, [K] each."""
    input_size = np.abs(x).mean(axis=0) if search.method == "awq" else np.maximum(x.max(axis=0), -x.min(axis=0))
    weight_size = np.abs(weight).max(axis=0)
    if search.shared is not None:
        input_size, weight_size = (_largest_of_group(size, search.shared) for size in (input_size, weight_size))
    return np.maximum(input_size, SMALLEST), np.maximum(weight_size, SMALLEST)


def _largest_of_group(values: Float32, groups: NDArray[np.int64]) -> Float32:
    largest = np.zeros(int(groups.max()) + 1, np.float32)
    np.maximum.at(largest, groups, values)
    return largest[groups]


def _factors(input_size: Float32, weight_size: Float32, exponent: float, method: str) -> Float32:
    power = np.log(input_size) * exponent
    if method == "smoothquant":
        power -= np.log(weight_size) * (1 - exponent)
    power -= power.mean()  # only ratios matter
    return np.exp(np.clip(power, -9, 9)).astype(np.float32)


def _error(x: Float32, rows: Float32, expected: Float32, factors: Float32, search: SmoothingSearch) -> float:
    smoothed, scaled = x / factors, rows * factors
    per_channel = search.weight_format.block is None
    policy = AbsMax() if per_channel else WeightedSearch(np.square(smoothed).mean(axis=0))
    dequantized = quantize_nearest(scaled, search.weight_format, policy).dequantize()
    if search.input_type is not None:
        scale = choose_scale(smoothed[::SCALE_STRIDE], np.square(dequantized).sum(axis=0), search.input_type)
        smoothed = fake_quantize(smoothed, scale, search.input_type)
    return float(np.square(smoothed @ dequantized.T - expected).sum(dtype=np.float64))
