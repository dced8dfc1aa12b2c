"""GGUF's storage types, from the gguf package; the only module that imports it."""

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
    """A type's name, its values per block and bytes per block; None for an unknown type."""
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
    with np.errstate(all="ignore"):  # infinities are refused afterwards, with the tensor's name
        values: NDArray[np.float32] = _dequantize(raw, GGMLQuantizationType[kind])
    return values
