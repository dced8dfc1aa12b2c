"""The numbers that quantised values are rounded to, in units of their scale; knows no scale and no codes."""

from dataclasses import dataclass
from typing import Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


class NumberFormat(Protocol):
    """Numbers that lie symmetrically about zero. A value x is stored as round(x / scale), scale = amax / largest."""

    @property
    def largest(self) -> float: ...

    def round(self, x: Float32) -> Float32:
        """The nearest number to each value, of two as near the even one; beyond the largest, the largest."""
        ...


@dataclass(frozen=True, slots=True)
class Integer:
    """Signed integers of `bits` (2 to 16) without the most negative one: -127 to 127 for 8."""

    bits: int

    @property
    def largest(self) -> float:
        return float(2 ** (self.bits - 1) - 1)

    def round(self, x: Float32) -> Float32:
        top = np.float32(self.largest)
        return np.clip(np.rint(x), -top, top)


@dataclass(frozen=True, slots=True)
class Float8:
    """E4M3FN: 4 bits of exponent, 3 of mantissa, no infinities.

    Micikevicius et al., FP8 Formats for Deep Learning (arXiv 2209.05433), section 3.
    """

    @property
    def largest(self) -> float:
        return 448.0

    def round(self, x: Float32) -> Float32:
        return self.decode(self.encode(x))

    def encode(self, x: Float32) -> NDArray[np.uint8]:
        """The bit patterns of the numbers that `round` gives."""
        # The cast makes NaN of what it cannot hold.
        top = np.float32(self.largest)
        return np.clip(x, -top, top).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)

    def decode(self, codes: NDArray[np.uint8]) -> Float32:
        """The numbers of bit patterns."""
        numbers: Float32 = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        return numbers


@dataclass(frozen=True, slots=True)
class Float4:
    """E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.

    Rouhani et al., Microscaling Data Formats for Deep Learning (arXiv 2310.10537), section 3.
    """

    @property
    def largest(self) -> float:
        return 6.0

    def round(self, x: Float32) -> Float32:
        return self.decode(self.encode(x))

    def encode(self, x: Float32) -> NDArray[np.uint8]:
        """The bit patterns of the numbers that `round` gives, each in the low half of a byte."""
        return x.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)

    def decode(self, codes: NDArray[np.uint8]) -> Float32:
        """The numbers of bit patterns."""
        numbers: Float32 = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
        return numbers


# Floating-point formats by their bits.
FLOATS: dict[int, Float8 | Float4] = {4: Float4(), 8: Float8()}
# Neighbours in a row that share a scale in NVFP4.
NVFP4_BLOCK = 16


@dataclass(frozen=True, slots=True)
class BlockFloat4:
    """NVFP4: E2M1 numbers, each 16 in a row times an E4M3 scale of their own, found when they are rounded.

    The largest is 6 * 448. Source: NVIDIA, TensorRT's documentation of dynamic double quantisation.
    """

    @property
    def largest(self) -> float:
        return FLOATS[4].largest * FLOATS[8].largest

    def round(self, x: Float32) -> Float32:
        """x [..., K], K a multiple of 16."""
        blocks = x.reshape(*x.shape[:-1], -1, NVFP4_BLOCK)
        scales = FLOATS[8].round(np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(FLOATS[4].largest))
        steps = np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales > 0)
        return (FLOATS[4].round(steps) * scales).reshape(x.shape)


def block_unit(largest_scale: float) -> np.float32:
    """What NVFP4 scales of blocks are E4M3 multiples of: a power of two, so that both are exact in any float."""
    exponent = np.ceil(np.log2(largest_scale / FLOATS[8].largest)) if largest_scale > 0 else 0.0
    return np.float32(2.0**exponent)
