"""GGUF's formats with one level of scales as BlockQuantized, code for code; K- and I-formats have two levels."""

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.weights.blocks import BlockFormat, BlockQuantized

BLOCK = 32
# A block's bytes: a float16 scale, for Q4_1 a float16 minimum, then the codes.
CODES_AT = {"Q4_0": 2, "Q4_1": 4, "Q8_0": 2}
FORMATS = {
    "Q4_0": BlockFormat(bits=4, block=BLOCK, zero_points=False, offsets=False),
    "Q4_1": BlockFormat(bits=4, block=BLOCK, zero_points=True, offsets=True),
    "Q8_0": BlockFormat(bits=8, block=BLOCK, zero_points=False, offsets=False),
}


def unpack_blocks(raw: NDArray[np.uint8], kind: str) -> BlockQuantized:
    """raw: [N, bytes of a row], of a kind in CODES_AT; the matrix is [N, K]."""
    at = CODES_AT[kind]
    rows = raw.shape[0]
    size = at + (BLOCK if kind == "Q8_0" else BLOCK // 2)
    blocks = raw.reshape(rows, -1, size)  # [N, K / 32, size]
    codes = _bytes(blocks[..., at:]) if kind == "Q8_0" else _nibbles(blocks[..., at:])
    scales = _half(blocks[..., 0:2])
    return BlockQuantized(
        bits=8 if kind == "Q8_0" else 4,
        block=BLOCK,
        codes=codes.reshape(rows, -1),
        scales=scales,
        zero_points=np.zeros(scales.shape, np.uint8) if kind == "Q4_1" else None,
        offsets=_half(blocks[..., 2:4]) if kind == "Q4_1" else None,
    )


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    # The low nibbles are a block's first 16 values, the high ones its last 16.
    return np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)


def _bytes(signed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return signed ^ np.uint8(0x80)  # two's complement to offset 128


def _half(pair: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(pair).view("<f2")[..., 0].astype(np.float32)
