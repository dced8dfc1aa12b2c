"""Calibrate one layer: smooth it, choose its input scales, quantise its weights; knows no file and no other layer.

Two streams of hidden states pass through it: the full-precision model's, and that of the model quantised so far, which
the layer reads at run time. Smoothing is chosen on the first, scales and weights on the second; asymmetric calibration
brings the second closer to the first.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.layer_smoothing import smooth_layer
from megrez.calibration.parallel import one_blas_thread
from megrez.calibration.projections import Projection, quantize_group
from megrez.calibration.recipe import Calibrated, Recipe
from megrez.calibration.reference.decoder import ADDED, GROUPS, NORMS, DecoderShape, forward, linear_of
from megrez.calibration.weights.asymmetric import FullPrecision
from megrez.runtime.errors import CheckpointError

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """Hidden states [S, T, H] of the full-precision model (reference) and of the quantised one.

    The first `calibration_samples` samples are calibration data; the others, which `quantized` may lack, are held out.
    """

    reference: Float32
    quantized: Float32
    calibration_samples: int


class _References:
    """The full-precision model's values at each projection group, on the calibration tokens; see FullPrecision.

    inputs: by group, of those that `keep_inputs` or whose outputs are not added to the residual stream.
    """

    def __init__(self, streams: Streams, *, keep_inputs: bool) -> None:
        samples = streams.calibration_samples
        self.tokens = samples * streams.reference.shape[1]
        self.inputs: dict[str, Float32] = {}
        self._keep_inputs = keep_inputs
        error = streams.reference[:samples] - streams.quantized[:samples]
        self._outputs = {"o": error.reshape(self.tokens, -1)}

    def record(self, group: str, x: Float32, y: Float32) -> None:
        """The full-precision model's input x and output y of a group."""
        if group in ADDED:
            self._outputs[group] = y[: self.tokens] + self._outputs.get(group, 0)
        if group not in ADDED or self._keep_inputs:
            self.inputs[group] = x[: self.tokens]

    def add(self, group: str, y: Float32) -> None:
        """The quantised model's output y of a group: o's is in the residual stream that down's is added to."""
        if group == "o":
            self._outputs["down"] += self._outputs.pop("o")
            self._outputs["down"] -= y[: self.tokens]

    def of(self, group: str, bias: Float32 | None) -> FullPrecision:
        """bias: of the group, where its outputs are added to the residual stream."""
        inputs = self.inputs.pop(group, None)
        if group not in ADDED:
            return FullPrecision(inputs=inputs)
        outputs = self._outputs[group]
        return FullPrecision(outputs=outputs if bias is None else outputs - bias)


@one_blas_thread()
def calibrate_layer(
    prefix: str, layer: dict[str, Float32], shape: DecoderShape, window: int | None, recipe: Recipe, streams: Streams
) -> tuple[Streams, Calibrated]:
    """The streams after the layer, and its calibration. prefix: "model.layers.0."; layer: its tensors.

    Raises CheckpointError where the full-precision model's hidden states overflow.
    """
    references = _References(streams, keep_inputs=recipe.smoothing is not None)
    calibrated = Calibrated()
    reference_linear = linear_of(layer)

    def record(group: str, x: Float32) -> Float32:
        y = reference_linear(group, x)
        references.record(group, x, y)
        return y

    reference = forward(streams.reference, layer, shape, window, record)
    if not np.isfinite(reference).all():
        name = prefix.rstrip(".")
        raise CheckpointError(f"{name} computes hidden states that are not finite on the text: repair the checkpoint")
    smoothed, exponents = smooth_layer(prefix, layer, shape, recipe, references.inputs)

    def quantize(group: str, x: Float32) -> Float32:
        projections = [projection_of(prefix, smoothed, name, recipe) for name in GROUPS[group]]
        calibration_inputs = x[: references.tokens]
        quantized = quantize_group(
            calibration_inputs,
            projections,
            recipe,
            alignable=group in NORMS,
            reference=references.of(group, projections[0].bias),
        )
        if quantized.factors is not None:
            norm = f"{NORMS[group]}.weight"
            smoothed[norm] = smoothed[norm] * quantized.factors
            aligned = zip(GROUPS[group], quantized.projections, strict=True)
            smoothed.update({f"{name}.weight": one.weight for name, one in aligned})
        calibrated.matrices |= quantized.matrices
        calibrated.groups[prefix + group] = quantized.result(exponents.get(group))
        y = quantized.calibration_outputs() if len(x) == references.tokens else quantized(x)
        references.add(group, y)
        return y

    quantized = forward(streams.quantized, smoothed, shape, window, quantize)
    calibrated.tensors = {
        prefix + name: tensor
        for name, tensor in smoothed.items()
        if tensor is not layer[name] and prefix + name not in calibrated.matrices
    }
    return dataclasses.replace(streams, reference=reference, quantized=quantized), calibrated


def projection_of(prefix: str, layer: dict[str, Float32], name: str, recipe: Recipe) -> Projection:
    """The projection `name`, such as "mlp.up_proj", of a layer's tensors."""
    full = f"{prefix}{name}.weight"
    weight, bias = layer[f"{name}.weight"], layer.get(f"{name}.bias")
    return Projection(name=full, weight=weight, bias=bias, weight_format=recipe.weight_format(full))
