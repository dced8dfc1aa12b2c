"""Reads stored floats at a position as float32, in pieces; knows no file format and does not map the file."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.parallel import in_parts
from megrez.runtime.errors import CheckpointError

BFLOAT16 = np.dtype("<u2")  # numpy has no such float: its bits are the upper half of a float32's
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
}
PIECE = 1 << 20  # values that a thread converts at a time, the only memory besides the result


def read_floats(path: Path, *, tensor: str, dtype: str, start: int, count: int) -> NDArray[np.float32]:
    """`count` values of type `dtype` (a key of DTYPES) from byte `start`, as float32 [count].

    Raises CheckpointError, naming `tensor` and the file, on a NaN, an infinity or an early end.
    """
    values, stored = np.empty(count, np.float32), DTYPES[dtype]

    def read_piece(part: slice) -> None:
        piece = values[part]
        raw = np.fromfile(path, stored, piece.size, offset=start + part.start * stored.itemsize)
        if raw.size < piece.size:
            raise CheckpointError(f"{path.name} ends inside {tensor}: download it again")
        _convert(raw, piece)
        refuse_non_finite(piece, tensor=tensor, path=path)

    in_parts(count, PIECE, read_piece)
    return values


def refuse_non_finite(values: NDArray[np.float32], *, tensor: str, path: Path) -> None:
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"{tensor} in {path.name} holds a NaN or an infinity: download it again, or train without overflow"
        )


def _convert(raw: NDArray[Any], out: NDArray[np.float32]) -> None:
    if raw.dtype == BFLOAT16:
        np.left_shift(raw, 16, out=out.view(np.uint32), dtype=np.uint32)
    else:
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes an infinity, which is then refused
            out[:] = raw
