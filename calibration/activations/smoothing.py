"""Moving what is hard to round from activations into weights, or back, channel by channel, before either is rounded.

(x / s) @ (w * s)^T is x @ w^T for any s [K] > 0; what makes x can divide by s at no cost. Sources: Xiao et al.,
SmoothQuant (2023): s = max|x|^a / max|w|^(1 - a); Lin et al., AWQ (2024): s = mean|x|^a. The exponent a is searched,
and not smoothing at all is among the candidates.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.inputs import choose_scale, round_to, search_rows
from megrez.calibration.weights.grids import fit_grid
from megrez.engines.weight_formats import WeightFormat

Float32 = NDArray[np.float32]
EXPONENTS = {
    "smoothquant": tuple(step / 10 for step in range(11)),
    "awq": tuple(step / 10 for step in range(1, 11)),
}
# Rows of weights on which exponents are compared.
ROWS = 1024
# Of every so many inputs one helps to choose the scale for a candidate; all are rounded with it.
SCALE_STEP = 4
SMALLEST = np.float32(1e-6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothing:
    """factors: s, float32 [K]. exponent: None where no smoothing was best and the factors are 1."""

    factors: Float32
    exponent: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Under what rounding candidates are compared. method: a key of EXPONENTS. inputs: as in choose_scale, or None.

    shared: columns that must have one factor, int [K], the group of each; None where each has its own.
    """

    method: str
    form: WeightFormat
    inputs: str | None
    shared: NDArray[np.int64] | None = None


def search_smoothing(x: Float32, weight: Float32, setting: Setting) -> Smoothing:
    """The smoothing of inputs x [tokens, K] and `weight` [N, K] that leaves the least error in x @ weight^T.

    All of x says how large its channels are; errors are compared on some of it.
    """
    loud, heavy = _channels(x, weight, setting)
    x = search_rows(x)
    rows = weight[:: -(-len(weight) // ROWS)]
    exact = x @ rows.T
    best = Smoothing(factors=np.ones(x.shape[1], np.float32), exponent=None)
    least = _error(x, rows, exact, best.factors, setting)
    for exponent in EXPONENTS[setting.method]:
        factors = _factors(loud, heavy, exponent, setting.method)
        error = _error(x, rows, exact, factors, setting)
        if error < least:
            best, least = Smoothing(factors=factors, exponent=exponent), error
    return best


def _channels(x: Float32, weight: Float32, setting: Setting) -> tuple[Float32, Float32]:
    """How large each input and the weights it meets are, [K] each."""
    magnitudes = np.abs(x)
    loud = magnitudes.mean(axis=0) if setting.method == "awq" else magnitudes.max(axis=0)
    heavy = np.abs(weight).max(axis=0)
    if setting.shared is not None:
        loud, heavy = _largest_of_group(loud, setting.shared), _largest_of_group(heavy, setting.shared)
    return np.maximum(loud, SMALLEST), np.maximum(heavy, SMALLEST)


def _largest_of_group(values: Float32, groups: NDArray[np.int64]) -> Float32:
    largest = np.zeros(int(groups.max()) + 1, np.float32)
    np.maximum.at(largest, groups, values)
    return largest[groups]


def _factors(loud: Float32, heavy: Float32, exponent: float, method: str) -> Float32:
    power = np.log(loud) * exponent
    if method == "smoothquant":
        power -= np.log(heavy) * (1 - exponent)
    power -= power.mean()  # only ratios matter
    return np.exp(np.clip(power, -9, 9)).astype(np.float32)


def _error(x: Float32, rows: Float32, exact: Float32, factors: Float32, setting: Setting) -> float:
    smooth, scaled = x / factors, rows * factors
    importance = None if setting.form.block is None else np.square(smooth).mean(axis=0)
    rounded = fit_grid(scaled, setting.form, importance).dequantize()
    if setting.inputs is not None:
        scale = choose_scale(smooth[::SCALE_STEP], np.square(rounded).sum(axis=0), setting.inputs)
        smooth = round_to(smooth, scale, setting.inputs)
    return float(np.square(smooth @ rounded.T - exact).sum(dtype=np.float64))
