"""Quantise a projection group, the projections that read one input; knows no layer."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.inputs import align_channels, choose_scale, fake_quantize, search_tokens
from megrez.calibration.parallel import multiply
from megrez.calibration.recipe import GroupResult, Recipe
from megrez.calibration.reference.decoder import project
from megrez.calibration.weights.asymmetric import ROWS_PER_PRODUCT, AsymmetricCorrection, FullPrecision
from megrez.calibration.weights.blocks import BlockQuantized
from megrez.calibration.weights.gptq import Gptq
from megrez.calibration.weights.gram import gram_matrix, mean_squares
from megrez.calibration.weights.nearest import quantize_nearest
from megrez.calibration.weights.ranges import WeightedSearch
from megrez.engines.weight_formats import WeightFormat

Float32 = NDArray[np.float32]
# Elements of the outputs on which errors are measured: a small part of what a layer computes.
LARGEST_PRODUCT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """weight [N, K]; bias [N] or None; weight_format None leaves it in float32."""

    name: str
    weight: Float32
    bias: Float32 | None
    weight_format: WeightFormat | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedGroup:
    """A projection group as it will be stored; matrices by name, the last three fields as in GroupResult.

    factors: [K] that the input is multiplied by first, and the weights were divided by; None for none.
    inputs: [tokens, K], the calibration data's as the projections read them: multiplied by `factors` and quantised.
    """

    projections: list[Projection]
    factors: Float32 | None
    inputs: Float32
    matrices: dict[str, BlockQuantized]
    input_type: str | None
    input_scale: float | None
    relative_error: float
    zero_channels: int

    def __call__(self, x: Float32) -> Float32:
        """The outputs for x [tokens, K], quantised as in the engine: [tokens, sum of N], biases included."""
        inputs = x if self.factors is None else x * self.factors
        if self.input_type is not None and self.input_scale is not None:
            inputs = fake_quantize(inputs, self.input_scale, self.input_type)
        return self._multiply(inputs)

    def calibration_outputs(self) -> Float32:
        """The outputs for the calibration data."""
        return self._multiply(self.inputs)

    def dequantized(self) -> "QuantizedGroup":
        """The same with the matrices dequantised once, for many calls."""
        projections = [
            dataclasses.replace(one, weight=self.matrices[one.name].dequantize()) if one.name in self.matrices else one
            for one in self.projections
        ]
        return dataclasses.replace(self, projections=projections, matrices={})

    def result(self, smoothing_exponent: float | None) -> GroupResult:
        return GroupResult(
            smoothing_exponent=smoothing_exponent,
            input_scale=self.input_scale,
            relative_error=self.relative_error,
            zero_channels=self.zero_channels,
        )

    def _multiply(self, inputs: Float32) -> Float32:
        return project(inputs, sum(len(one.weight) for one in self.projections), self._weights())

    def _weights(self) -> Iterator[tuple[Float32, Float32 | None]]:
        """The weights as they are stored, and their biases, in parts."""
        for one in self.projections:
            matrix = self.matrices.get(one.name)
            for start in range(0, len(one.weight), ROWS_PER_PRODUCT):
                part = slice(start, start + ROWS_PER_PRODUCT)
                weight = one.weight[part] if matrix is None else matrix.rows(part).dequantize()
                yield weight, None if one.bias is None else one.bias[part]


def quantize_group(
    x: Float32,
    projections: list[Projection],
    recipe: Recipe,
    *,
    alignable: bool = False,
    reference: FullPrecision | None = None,
    overwrite: bool = False,
) -> QuantizedGroup:
    """Scales and codes for the inputs x [tokens, K] that the quantised model computes on the calibration data.

    Where all projections stay in float32 the input does too; where only some do, they read the quantised input.
    alignable: whether the operator before can absorb per-channel factors; FP8 inputs are then aligned. reference: the
    full-precision model's values, for asymmetric calibration; relative_error does not include its correction.
    overwrite: the projections' weights may be overwritten.
    """
    if all(one.weight_format is None for one in projections):
        return _group(projections, None, x, {}, recipe, None, x)
    scale, factors, inputs = None, None, x
    if recipe.input_type is not None:
        scale = choose_scale(x, _importance(projections), recipe.input_type)
        if alignable and recipe.input_type == "fp8":
            factors = align_channels(x, scale, recipe.input_type)
            projections = [dataclasses.replace(one, weight=one.weight / factors) for one in projections]
            inputs = x * factors
            if reference is not None and reference.inputs is not None:
                reference = dataclasses.replace(reference, inputs=reference.inputs * factors)
        inputs = fake_quantize(inputs, scale, recipe.input_type)
    gptq, search = None, WeightedSearch(mean_squares(inputs))
    if recipe.gptq:
        gptq = Gptq(gram_matrix(inputs), len(inputs))
        if reference is not None:
            correct = AsymmetricCorrection(reference=reference, inputs=inputs, gram=gptq.gram)
            projections = [
                one
                if one.weight_format is None
                else dataclasses.replace(one, weight=correct(one.weight, overwrite=overwrite))
                for one in projections
            ]
    matrices = {}
    for one in projections:
        if one.weight_format is not None:
            grid = quantize_nearest(one.weight, one.weight_format, search)
            matrices[one.name] = grid if gptq is None else gptq.quantize(one.weight, grid)
    quantized = _group(projections, factors, inputs, matrices, recipe, scale, x)
    return dataclasses.replace(quantized, relative_error=_relative_error(quantized, search_tokens(x)))


def _group(
    projections: list[Projection],
    factors: Float32 | None,
    inputs: Float32,
    matrices: dict[str, BlockQuantized],
    recipe: Recipe,
    input_scale: float | None,
    x: Float32,
) -> QuantizedGroup:
    """With relative_error 0, which is measured afterwards."""
    zero_rows = sum(int((~one.weight.any(axis=1)).sum()) for one in projections if one.name in matrices)
    return QuantizedGroup(
        projections=projections,
        factors=factors,
        inputs=inputs,
        matrices=matrices,
        input_type=recipe.input_type,
        input_scale=input_scale,
        relative_error=0.0,
        zero_channels=int((~x.any(axis=0)).sum()) + zero_rows,
    )


def _importance(projections: list[Projection]) -> Float32:
    """The weight of each channel's squared error, [K]: the sum of the quantised projections' squared weights."""
    squares = [np.square(one.weight).sum(axis=0) for one in projections if one.weight_format is not None]
    total: Float32 = np.sum(squares, axis=0)
    return total


def _relative_error(group: QuantizedGroup, x: Float32) -> float:
    width = sum(len(one.weight) for one in group.projections)
    x = x[:: -(-len(x) * width // LARGEST_PRODUCT)]
    aligned = x if group.factors is None else x * group.factors
    expected = np.concatenate([multiply(aligned, one.weight.T) for one in group.projections], axis=1)
    biases = [np.zeros(len(one.weight), np.float32) if one.bias is None else one.bias for one in group.projections]
    total = float(np.square(expected).sum(dtype=np.float64))
    error = float(np.square(group(x) - np.concatenate(biases) - expected).sum(dtype=np.float64))
    return error / total if total else 0.0
