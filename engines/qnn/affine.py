"""Affine quantisation of tensors that an NPU reads and writes: unsigned codes, one scale and one zero point."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[Any]
TYPES: dict[int, np.dtype[Any]] = {8: np.dtype(np.uint8), 16: np.dtype(np.uint16)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """x = (code - zero_point) * scale, with codes of 8 or 16 bits."""

    bits: int
    scale: float
    zero_point: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return TYPES[self.bits]

    def encode(self, x: NDArray[np.floating[Any]]) -> Codes:
        """Codes of x: round half to even, then saturate, as ONNX's QuantizeLinear."""
        steps = np.rint(x / np.float32(self.scale)) + self.zero_point
        codes: Codes = steps.clip(0, (1 << self.bits) - 1).astype(self.dtype)
        return codes

    def decode(self, codes: Codes) -> NDArray[np.float32]:
        y: NDArray[np.float32] = (codes.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)
        return y


def affine_of(low: float, high: float, bits: int = 16) -> Affine:
    """The quantisation that covers low .. high and represents 0 exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    steps = (1 << bits) - 1
    scale = float(np.float32((high - low) / steps)) or 1.0  # a tensor of zeros
    return Affine(bits=bits, scale=scale, zero_point=min(round(-low / scale), steps))
