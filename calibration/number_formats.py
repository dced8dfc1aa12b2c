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
