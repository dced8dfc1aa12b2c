"""GGUF's storage types, as the gguf package knows them; the one module that imports it."""

import numpy as np
from numpy.typing import NDArray

from megrez.runtime.errors import MissingExtraError

try:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize as _dequantize
except ImportError as error:
    raise MissingExtraError(needed_for="reading a .gguf file", library="gguf", extra="export") from error

FLOATS = ("F64", "F32", "F16", "BF16")


def block_sizes(number: int) -> tuple[str, int, int] | None:
    """A type's name, the values in one of its blocks, and a block's bytes; None for an unknown number."""
    try:
        kind = GGMLQuantizationType(number)
        values, size = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        return None
    return kind.name, values, size


def can_dequantize(kind: str) -> bool:
    if kind in FLOATS:
        return True
    if kind not in GGMLQuantizationType.__members__:
        return False
    _, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    try:
        _dequantize(np.zeros((1, size), np.uint8), GGMLQuantizationType[kind])
    except NotImplementedError:
        return False
    return True


def dequantize(raw: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """raw: [rows, bytes of a row]; float32 [rows, values of a row]."""
    with np.errstate(all="ignore"):  # a bad scale's infinity is refused by name afterwards
        values: NDArray[np.float32] = _dequantize(raw, GGMLQuantizationType[kind])
    return values
