"""One safetensors file: its table of tensors; knows no tensor's meaning.

Needs no library: the format is a length, a JSON table and the bytes, and safetensors' numpy side has no bfloat16.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megrez.compile.checkpoint.floats import DTYPES, read_floats
from megrez.runtime.errors import CheckpointError

MAX_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies: its file, and the position of its first byte there."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The file's tensors by name; raises CheckpointError when the file is cut or is none of its kind."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > MAX_HEADER:
            raise _garbage(path, size)
        base = 8 + length
        if base > size:
            raise CheckpointError(f"{path.name} is cut: its header needs {base} bytes, found {size}: download it again")
        table = _parse(path, size, file.read(length))
    expected = base + max((entry["data_offsets"][1] for entry in table.values()), default=0)
    if expected != size:
        state = "is cut" if size < expected else "is too long"
        raise CheckpointError(f"{path.name} {state}: expected {expected} bytes, found {size}: download it again")
    return {
        name: StoredTensor(
            path=path,
            name=name,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            start=base + entry["data_offsets"][0],
        )
        for name, entry in table.items()
    }


def read_rows(tensor: StoredTensor, start: int, stop: int) -> NDArray[np.float32]:
    """Rows [start, stop) of a tensor whose dtype is in DTYPES, as float32; errors as in `read_floats`."""
    row = math.prod(tensor.shape[1:])
    values = read_floats(
        tensor.path,
        tensor=tensor.name,
        dtype=tensor.dtype,
        start=tensor.start + start * row * DTYPES[tensor.dtype].itemsize,
        count=(stop - start) * row,
    )
    return values.reshape(stop - start, *tensor.shape[1:])


def _parse(path: Path, size: int, text: bytes) -> dict[str, dict[str, Any]]:
    try:
        table: dict[str, dict[str, Any]] = json.loads(text)
        table.pop("__metadata__", None)
        consistent = all(_is_consistent(entry) for entry in table.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _garbage(path, size) from error
    if not consistent:
        raise _garbage(path, size)
    return table


def _is_consistent(entry: dict[str, Any]) -> bool:
    first, last = entry["data_offsets"]
    if entry["dtype"] not in DTYPES:
        return bool(0 <= first <= last)
    return bool(first >= 0 and last - first == math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize)


def _garbage(path: Path, size: int) -> CheckpointError:
    return CheckpointError(f"{path.name} ({size} bytes) is not a safetensors file, or a damaged one: download it again")
