"""The memory of a session's buffers: the interface, and its implementation in host memory. Independent of graphs."""

import contextlib
import mmap
import os
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Buffer(Protocol):
    """Memory at a fixed address. device: ONNX Runtime's name of it. pointer: the address there."""

    @property
    def device(self) -> str: ...

    @property
    def pointer(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def entries(self, first: int, count: int) -> "Buffer":
        """The slice [first : first + count] of the first dimension, in the same memory."""
        ...

    def write(self, array: Array) -> None:
        """Copy `array`, of the buffer's shape and data type, into the buffer."""
        ...

    def read(self) -> Array:
        """The contents; valid until the next write."""
        ...


class Place(Protocol):
    """Allocates buffers in one kind of memory."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Buffer: ...

    def copy_tokens(self, source: Buffer, target: Buffer, tokens: int) -> None:
        """Copy [:, :, :tokens] of `source` into `target`, both [B, heads, capacity, head_dim]; may be asynchronous."""
        ...

    def synchronize(self) -> None:
        """Wait for copies to complete."""
        ...

    def run_options(self, recording: int | None) -> Any:
        """onnxruntime's RunOptions for steps that are recorded and replayed under this id; None: not recorded."""
        ...


@dataclass(slots=True)
class HostBuffer:
    array: Array
    device: str = "cpu"

    @property
    def pointer(self) -> int:
        return self.array.ctypes.data

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def entries(self, first: int, count: int) -> "HostBuffer":
        return HostBuffer(self.array[first : first + count])

    def write(self, array: Array) -> None:
        self.array[...] = array

    def read(self) -> Array:
        return self.array


# Bytes from which on a buffer is mapped.
MAPPED = 1 << 20


class Host:
    """Host memory, in numpy arrays. Nothing is recorded on a CPU."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> HostBuffer:
        return HostBuffer(_mapped(shape, np.dtype(dtype)))

    def copy_tokens(self, source: Buffer, target: Buffer, tokens: int) -> None:
        target.read()[:, :, :tokens] = source.read()[:, :, :tokens]

    def synchronize(self) -> None:
        pass

    def run_options(self, recording: int | None) -> None:
        return None


def _mapped(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Zeros whose pages take memory when they are first written.

    Without huge pages: a KV cache is filled a little at a time in the range of every slot and head, and a huge page in
    each of them would often be the whole range.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    if size < MAPPED:
        return np.zeros(shape, dtype)
    # Private where there is a choice: Linux would count shared pages as files in memory.
    pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) if os.name == "posix" else mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype).reshape(shape)


HOST = Host()
