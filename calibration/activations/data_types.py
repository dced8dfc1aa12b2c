"""Data types that values are quantised to, in units of their scale; knows no matrix."""

from dataclasses import dataclass
from typing import Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
# The bits of a float32's exponent.
FLOAT32_EXPONENT = 0x7F800000


class DataType(Protocol):
    """A symmetric data type. x is quantised to round(x / scale), with scale = amax / largest."""

    @property
    def largest(self) -> float: ...

    def round(self, x: Float32) -> Float32:
        """x rounded to the nearest value, ties to even, and clipped to the largest. float32, x's shape."""
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
class E4M3:
    """FP8 with 4 bits of exponent, 3 of mantissa and no infinities (E4M3FN).

    Micikevicius et al., FP8 Formats for Deep Learning (arXiv 2209.05433), section 3.
    """

    @property
    def largest(self) -> float:
        return 448.0

    @property
    def smallest_normal(self) -> float:
        return 2.0**-6

    def round(self, x: Float32) -> Float32:
        """See DataType. Much faster than a cast to bit patterns and back."""
        top = np.float32(self.largest)
        y: Float32 = np.clip(x, -top, top)
        # A float32 of 1.5 * 2**(e + 20) has steps of 2**(e - 3), those of E4M3 from 2**e on: adding it rounds.
        rounding = (y.view(np.uint32) & np.uint32(FLOAT32_EXPONENT)).view(np.float32)
        np.maximum(rounding, np.float32(self.smallest_normal), out=rounding)
        rounding *= np.float32(1.5 * 2**20)
        y += rounding
        y -= rounding
        return y

    def encode(self, x: Float32) -> NDArray[np.uint8]:
        """The bit patterns of round(x)."""
        # The cast turns values out of range into NaN.
        top = np.float32(self.largest)
        return np.clip(x, -top, top).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)

    def decode(self, codes: NDArray[np.uint8]) -> Float32:
        """The values of bit patterns."""
        values: Float32 = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        return values


@dataclass(frozen=True, slots=True)
class E2M1:
    """FP4: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.

    Rouhani et al., Microscaling Data Formats for Deep Learning (arXiv 2310.10537), section 3.
    """

    @property
    def largest(self) -> float:
        return 6.0

    def round(self, x: Float32) -> Float32:
        return self.decode(self.encode(x))

    def encode(self, x: Float32) -> NDArray[np.uint8]:
        """The bit patterns of round(x), each in the low half of a byte."""
        return x.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)

    def decode(self, codes: NDArray[np.uint8]) -> Float32:
        """The values of bit patterns."""
        values: Float32 = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
        return values


# Floating-point types by their bits.
FLOAT_TYPES: dict[int, E2M1 | E4M3] = {4: E2M1(), 8: E4M3()}
# Neighbouring values, along the input channels, that share a scale in NVFP4.
NVFP4_BLOCK = 16


@dataclass(frozen=True, slots=True)
class NVFP4:
    """E2M1 values with an E4M3 scale per block of 16, computed at run time (dynamic quantisation).

    The largest is 6 * 448. Source: NVIDIA, TensorRT's documentation of dynamic double quantisation.
    """

    @property
    def largest(self) -> float:
        return FLOAT_TYPES[4].largest * FLOAT_TYPES[8].largest

    def round(self, x: Float32) -> Float32:
        """x [..., K], K a multiple of 16."""
        blocks = x.reshape(*x.shape[:-1], -1, NVFP4_BLOCK)
        largest = np.abs(blocks).max(axis=-1, keepdims=True)
        scales = FLOAT_TYPES[8].round(largest / np.float32(FLOAT_TYPES[4].largest))
        quotients = np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales > 0)
        return (FLOAT_TYPES[4].round(quotients) * scales).reshape(x.shape)


def tensor_scale(largest_scale: float) -> np.float32:
    """NVFP4's scale of a whole matrix, by which block scales are divided to be E4M3: a power of two, so exact."""
    exponent = np.ceil(np.log2(largest_scale / FLOAT_TYPES[8].largest)) if largest_scale > 0 else 0.0
    return np.float32(2.0**exponent)
