"""Block-quantised matrices, which quantisers produce and graph passes pack; knows no engine's layout."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.data_types import FLOAT_TYPES
from megrez.calibration.parallel import in_parts

# Weights that a thread dequantises at a time: 1 MB.
TILE = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFormat:
    """A BlockQuantized's format, known before its arrays are read; fields as there."""

    bits: int
    block: int
    zero_points: bool
    offsets: bool
    floating: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockQuantized:
    """A matrix [N, K] of unsigned codes that share a scale in blocks along K; the last block may be short.

        w[n, k] = scales[n, b] * (codes[n, k] - zero_points[n, b]) + offsets[n, b]      with b = k // block

    codes: uint8 [N, K], each below 2**bits. scales: float32 [N, ceil(K / block)].
    zero_points: uint8, shaped as scales; None stands for 2**(bits - 1).
    offsets: float32, shaped as scales; None stands for zero. Only formats with a float minimum (GGUF's Q4_1) have them.
    floating: the codes are bit patterns of E4M3 (8 bits) or E2M1 (4 bits), without zero points. Scales of E2M1 blocks
    are E4M3 values times a power of two, NVFP4's tensor scale. A block of K columns is one scale per row: per channel.
    """

    bits: int
    block: int
    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None = None
    offsets: NDArray[np.float32] | None = None
    floating: bool = False

    def rows(self, part: slice) -> "BlockQuantized":
        """Those rows of the matrix, without a copy."""
        return dataclasses.replace(
            self,
            codes=self.codes[part],
            scales=self.scales[part],
            zero_points=None if self.zero_points is None else self.zero_points[part],
            offsets=None if self.offsets is None else self.offsets[part],
        )

    def dequantize(self) -> NDArray[np.float32]:
        """The dequantised matrix, float32 [N, K]."""
        rows, columns = self.codes.shape
        values = np.empty((rows, columns), np.float32)

        def write(part: slice) -> None:
            values[part] = self.rows(part)._dequantized()

        in_parts(rows, max(1, TILE // columns), write)
        return values

    def _dequantized(self) -> NDArray[np.float32]:
        rows, columns = self.codes.shape
        padding = (0, 0), (0, -columns % self.block)
        codes = np.pad(self.codes, padding) if padding[1][1] else self.codes
        blocks = codes.reshape(rows, -1, self.block)
        if self.floating:
            values = FLOAT_TYPES[self.bits].decode(blocks)
        else:
            values = blocks.astype(np.float32)
            middle = np.float32(2 ** (self.bits - 1))
            values -= middle if self.zero_points is None else self.zero_points.astype(np.float32)[..., None]
        values *= self.scales[..., None]
        if self.offsets is not None:
            values += self.offsets[..., None]
        return values.reshape(rows, -1)[:, :columns]
