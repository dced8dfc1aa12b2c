"""One safetensors file: its table of tensors; does not interpret them.

Uses no library: the format is a length, a JSON table and the data, and safetensors' numpy API has no bfloat16.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from megrez.compile.checkpoint.floats import DTYPES, PIECE, read_floats
from megrez.runtime.errors import CheckpointError

MAX_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where a tensor is stored: its file, the position of its first byte and its size in bytes.

    dtype: the file's name for it, which may be one that cannot be read.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The file's tensors by name; raises CheckpointError where the file is truncated or not safetensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > MAX_HEADER:
            raise _garbage(path, size)
        base = 8 + length
        if base > size:
            raise CheckpointError(
                f"{path.name} is truncated: its header needs {base} bytes, found {size}: download it again"
            )
        tensors = _parse(path, size, file.read(length), base)
    ends = sorted((tensor.start, tensor.start + tensor.size, name) for name, tensor in tensors.items())
    expected = max((stop for _, stop, _ in ends), default=base)
    if expected != size:
        state = "is truncated" if size < expected else "is too long"
        raise CheckpointError(f"{path.name} {state}: expected {expected} bytes, found {size}: download it again")
    previous = base
    for start, stop, name in ends:
        if start != previous:
            state = "overlaps the tensor before it" if start < previous else "lies behind a gap"
            raise CheckpointError(f"{path.name} is damaged: {name} {state}: download it again")
        previous = stop
    return tensors


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


def same_values(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors hold the same values, read a part at a time; False for a dtype that is not in DTYPES."""
    if one.shape != other.shape or not one.shape or not {one.dtype, other.dtype} <= DTYPES.keys():
        return False
    rows = one.shape[0]
    step = max(1, PIECE // max(1, math.prod(one.shape[1:])))
    parts = ((at, min(at + step, rows)) for at in range(0, rows, step))
    return all(np.array_equal(read_rows(one, *part), read_rows(other, *part)) for part in parts)


def _parse(path: Path, size: int, text: bytes, base: int) -> dict[str, StoredTensor]:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _garbage(path, size) from error
    if not isinstance(table, dict) or not all(name.isprintable() for name in table):
        raise _garbage(path, size)
    table.pop("__metadata__", None)
    return {name: _tensor(path, name, entry, base) for name, entry in table.items()}


def _tensor(path: Path, name: str, entry: object, base: int) -> StoredTensor:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(
            f"{path.name} is damaged: {name} has no valid dtype, shape and data_offsets: download it again"
        )
    size = offsets[1] - offsets[0]
    if size < 0 or (dtype in DTYPES and size != math.prod(shape) * DTYPES[dtype].itemsize):
        raise CheckpointError(
            f"{path.name} is damaged: {name}, {dtype} {shape}, has data_offsets {offsets}: download it again"
        )
    return StoredTensor(path=path, name=name, dtype=dtype, shape=tuple(shape), start=base + offsets[0], size=size)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _garbage(path: Path, size: int) -> CheckpointError:
    return CheckpointError(f"{path.name} ({size} bytes) is not a safetensors file, or a damaged one: download it again")
