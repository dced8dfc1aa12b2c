"""A .gguf file's metadata and table of tensors; does not interpret keys or tensors.

The gguf package's reader makes an array of every string, which takes seconds and hundreds of megabytes for a large
vocabulary; this one reads the header once into Python values.
"""

import itertools
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megrez.compile.checkpoint.gguf.types import block_sizes
from megrez.runtime.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
MAX_DIMS = 4  # the format's own limit


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """Where a tensor is stored, and how.

    kind: the storage type's name, or "GGML type 99" for one that the gguf package does not know, with size 0. shape:
    rows first, as in numpy, the reverse of the file's. size: bytes.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_header(path: Path) -> GgufHeader:
    """Raises CheckpointError where the file is not GGUF, truncated or damaged."""
    found = path.stat().st_size
    with path.open("rb") as file:
        reader = _Reader(file, path, found)
        tensors_count, metadata_count = _read_preamble(reader, path)
        metadata = {}
        for _ in range(metadata_count):
            key = reader.name()
            metadata[key] = reader.value(reader.scalar("<I"))
        entries = [_read_entry(reader, path) for _ in range(tensors_count)]
        alignment = _alignment(metadata, path)
        base = -(-file.tell() // alignment) * alignment
    tensors = {name: _locate(name, dims, kind, base + offset) for name, dims, kind, offset in entries}
    _check_places(list(tensors.values()), path, base, found)
    return GgufHeader(metadata=metadata, tensors=tensors)


def _alignment(metadata: dict[str, Any], path: Path) -> int:
    found = metadata.get("general.alignment", 32)
    if type(found) is not int or found < 1 or found & (found - 1):
        raise CheckpointError(f"{path.name} has general.alignment {found!r}, not a power of two: download it again")
    return found


def _check_places(tensors: list[GgufTensor], path: Path, base: int, found: int) -> None:
    expected = max((tensor.start + tensor.size for tensor in tensors), default=base)
    if expected > found:
        raise CheckpointError(f"{path.name} is truncated: expected {expected} bytes, found {found}: download it again")
    ordered = sorted(tensors, key=lambda tensor: (tensor.start, tensor.size))
    for one, other in itertools.pairwise(ordered):
        if one.start + one.size > other.start:
            raise CheckpointError(f"{path.name} is damaged: {one.name} overlaps {other.name}: download it again")


class _Reader:
    """Reads little-endian values from a file; a length beyond its end is an error, not an allocation."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self._file, self._path, self._size = file, path, size

    def take(self, count: int) -> bytes:
        # Comparing with the file's size bounds the allocation for a damaged length.
        data = self._file.read(count) if count <= self._size else b""
        if len(data) != count:
            raise self._damaged()
        return data

    def scalar(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self) -> str:
        return self.take(self.scalar("<Q")).decode("utf-8", errors="replace")

    def name(self) -> str:
        found = self.string()
        if not found or not found.isprintable():  # zeros would read as one nameless entry after the other
            raise self._damaged()
        return found

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self._array(self.scalar("<I"), self.scalar("<Q"))
        return self.scalar(self._form(kind))

    def _array(self, item: int, count: int) -> list[Any]:
        if count > self._size:  # an item takes at least a byte
            raise self._damaged()
        if item == STRING:
            return [self.string() for _ in range(count)]
        if item == ARRAY:
            raise CheckpointError(f"{self._path.name} has an array of arrays in its metadata, which is not supported")
        form = self._form(item)[1]
        return list(struct.unpack(f"<{count}{form}", self.take(count * struct.calcsize(f"<{form}"))))

    def _damaged(self) -> CheckpointError:
        return CheckpointError(
            f"{self._path.name} is truncated or damaged inside its header ({self._size} bytes): download it again"
        )

    def _form(self, kind: int) -> str:
        if kind not in SCALARS:
            raise CheckpointError(f"{self._path.name} has metadata of unknown type {kind}: download it again")
        return SCALARS[kind]


def _read_preamble(reader: _Reader, path: Path) -> tuple[int, int]:
    magic = reader.take(4)
    if magic != MAGIC:
        raise CheckpointError(f"{path.name} is not a GGUF file (it starts with {magic!r}): download it again")
    version = reader.scalar("<I")
    if version not in VERSIONS:
        raise CheckpointError(
            f"{path.name} is GGUF version {version}: versions {VERSIONS[0]} and {VERSIONS[1]}, little-endian, are read"
        )
    return reader.scalar("<Q"), reader.scalar("<Q")


def _read_entry(reader: _Reader, path: Path) -> tuple[str, tuple[int, ...], int, int]:
    name = reader.name()
    count = reader.scalar("<I")
    if count > MAX_DIMS:
        raise CheckpointError(f"{path.name} is damaged: {name} has {count} dimensions: download it again")
    return name, tuple(reader.scalar("<Q") for _ in range(count)), reader.scalar("<I"), reader.scalar("<Q")


def _locate(name: str, dims: tuple[int, ...], number: int, start: int) -> GgufTensor:
    shape = dims[::-1]
    found = block_sizes(number)
    if found is None:
        return GgufTensor(name=name, kind=f"GGML type {number}", shape=shape, start=start, size=0)
    kind, values, size = found
    if dims and dims[0] % values:
        raise CheckpointError(f"{name} has rows of {dims[0]} values, not whole {kind} blocks of {values}: rebuild it")
    blocks = math.prod(dims) // values if dims else 1
    return GgufTensor(name=name, kind=kind, shape=shape, start=start, size=blocks * size)
