"""Round the projections that read one input, as the engine will multiply them; knows no layer around them."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.inputs import align_channels, choose_scale, round_to, search_rows
from megrez.calibration.recipe import Recipe
from megrez.calibration.weights.asymmetric import Exact, correction
from megrez.calibration.weights.blocks import BlockQuantized
from megrez.calibration.weights.gptq import quantize_gptq
from megrez.calibration.weights.gram import second_moments
from megrez.calibration.weights.grids import fit_grid
from megrez.engines.weight_formats import WeightFormat

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
# Numbers in the outputs on which errors are measured.
LARGEST_PRODUCT = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """weight [N, K]; bias [N] or None; form None leaves it exact."""

    name: str
    weight: Float32
    bias: Float32 | None
    form: WeightFormat | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounded:
    """Projections of one input as they will be stored; matrices by name, input_scale, error and zeros as in
    Point.

    factors: [K] that the input must be multiplied by first, which the projections were divided by; None for none.
    """

    projections: list[Projection]
    factors: Float32 | None
    matrices: dict[str, BlockQuantized]
    inputs: str | None
    input_scale: float | None
    error: float
    zeros: int

    def __call__(self, x: Float32) -> Float32:
        """What x [tokens, K] gives in the engine's arithmetic: [tokens, sum of N], biases included."""
        met = x if self.factors is None else x * self.factors
        if self.inputs is not None and self.input_scale is not None:
            met = round_to(met, self.input_scale, self.inputs)
        return np.concatenate([self._product(met, one) for one in self.projections], axis=1)

    def dequantized(self) -> "Rounded":
        """The same numbers with the matrices' floats at hand, for whoever asks more than once."""
        projections = [
            dataclasses.replace(one, weight=self.matrices[one.name].dequantize()) if one.name in self.matrices else one
            for one in self.projections
        ]
        return dataclasses.replace(self, projections=projections, matrices={})

    def _product(self, met: Float32, one: Projection) -> Float32:
        matrix = self.matrices.get(one.name)
        y = met @ (one.weight if matrix is None else matrix.dequantize()).T
        return y if one.bias is None else y + one.bias


def round_point(
    x: Float32, projections: list[Projection], recipe: Recipe, *, free: bool = False, exact: Exact | None = None
) -> Rounded:
    """Scales and codes for the inputs x [tokens, K] of the calibration text.

    Where all projections stay exact the input does too; where only some do, they read the rounded input. free: whether
    what makes x can take factors for its channels: FP8 inputs are then aligned. exact: what GPTQ is to aim at, where it
    is not what x gives; its errors are then those that are left besides.
    """
    scale, factors, met = None, None, x
    if recipe.inputs is not None and any(one.form is not None for one in projections):
        scale = choose_scale(x, _importance(projections), recipe.inputs)
        if free and recipe.inputs == "fp8":
            factors = align_channels(x, scale, recipe.inputs)
            projections = [dataclasses.replace(one, weight=one.weight / factors) for one in projections]
            met = x * factors
            exact = exact and dataclasses.replace(exact, inputs=exact.inputs * factors)
        met = round_to(met, scale, recipe.inputs)
    matrices: dict[str, BlockQuantized] = {}
    if any(one.form is not None for one in projections):
        moments = second_moments(met)
        if exact is not None and recipe.gptq:
            corrected = correction(exact, met, moments)
            projections = [
                one if one.form is None else dataclasses.replace(one, weight=corrected(one.weight))
                for one in projections
            ]
        for one in projections:
            if one.form is not None:
                matrices[one.name] = round_weight(one.weight, one.form, moments, gptq=recipe.gptq)
    nothing = sum(int((~one.weight.any(axis=1)).sum()) for one in projections if one.name in matrices)
    found = Rounded(
        projections=projections,
        factors=factors,
        matrices=matrices,
        inputs=recipe.inputs,
        input_scale=scale,
        error=0.0,
        zeros=int((~x.any(axis=0)).sum()) + nothing,
    )
    return dataclasses.replace(found, error=_relative_error(found, search_rows(x))) if matrices else found


def _importance(projections: list[Projection]) -> Float32:
    """What a squared error of each input costs: the squared weights of the rounded projections that read it, [K]."""
    squares = [np.square(one.weight).sum(axis=0) for one in projections if one.form is not None]
    total: Float32 = np.sum(squares, axis=0)
    return total


def _relative_error(found: Rounded, x: Float32) -> float:
    width = sum(len(one.weight) for one in found.projections)
    x = x[:: -(-len(x) * width // LARGEST_PRODUCT)]
    aligned = x if found.factors is None else x * found.factors
    exact = np.concatenate([aligned @ one.weight.T for one in found.projections], axis=1)
    biases = [np.zeros(len(one.weight), np.float32) if one.bias is None else one.bias for one in found.projections]
    total = float(np.square(exact).sum(dtype=np.float64))
    return float(np.square(found(x) - np.concatenate(biases) - exact).sum(dtype=np.float64)) / total if total else 0.0


def round_weight(weight: Float32, form: WeightFormat, moments: Float64, *, gptq: bool) -> BlockQuantized:
    """`weight` [N, K] in its format, for inputs with these second moments [K, K]."""
    grid = fit_grid(weight, form, np.diag(moments).astype(np.float32))
    return quantize_gptq(weight, grid, moments) if gptq else grid
