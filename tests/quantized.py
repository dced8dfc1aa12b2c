"""The arithmetic of ONNX Runtime's quantised products in float64, apart from the product's own; imports none of it."""

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def decode(
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.uint8] | None,
    *,
    bits: int,
    block: int,
) -> Float64:
    """MatMulNBits' B [N, blocks, bytes] as numbers [N, blocks * block]; by its documentation, low nibble first."""
    n, blocks = scales.shape
    flat = _unpack(codes.reshape(n, -1), bits).reshape(n, blocks, block)
    middle = np.full((n, blocks), 2 ** (bits - 1)) if zero_points is None else _unpack(zero_points, bits)[:, :blocks]
    return (scales[..., None].astype(np.float64) * (flat - middle[..., None].astype(np.float64))).reshape(n, -1)


def _unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1)


def activation_error(x: NDArray[np.float32], weights: Float64, block: int) -> Float64:
    """How far a product with `weights` [N, K] may be from exact when x [..., K] is rounded to int8 per block.

    A block of x has the step max|x| / 127, so each element is off by at most half of that, max|x| / 254, and the
    product by the sum over blocks of max|x| / 254 * sum |w|. A millionth of sum |x| |w| is for float32 sums.
    """
    spare = -x.shape[-1] % block
    x64 = _padded(np.abs(x.astype(np.float64)), spare)
    w64 = _padded(np.abs(weights[:, : x.shape[-1]]), spare)
    steps = x64.reshape(*x.shape[:-1], -1, block).max(axis=-1) / 254  # [..., blocks]
    sums = w64.reshape(len(weights), -1, block).sum(axis=-1)  # [N, blocks]
    return np.asarray(steps @ sums.T + 1e-6 * (x64 @ w64.T))


def _padded(values: Float64, spare: int) -> Float64:
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, spare)])
