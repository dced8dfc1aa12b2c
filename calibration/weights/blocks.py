"""Block-quantised matrices, which quantisers produce and graph passes pack; knows no engine's layout."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.data_types import FLOAT_TYPES


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

    def dequantize(self) -> NDArray[np.float32]:
        """The dequantised matrix, float32 [N, K]."""
        columns = self.codes.shape[1]

        def spread(per_block: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.repeat(per_block, self.block, axis=1)[:, :columns]

        if self.floating:
            return spread(self.scales) * FLOAT_TYPES[self.bits].decode(self.codes)
        middle = np.float32(2 ** (self.bits - 1))
        zero = middle if self.zero_points is None else spread(self.zero_points.astype(np.float32))
        values = spread(self.scales) * (self.codes.astype(np.float32) - zero)
        return values if self.offsets is None else values + spread(self.offsets)
