"""Where a session's buffers lie, and how arrays get there and back: here, in numpy arrays. Knows no graph."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Buffer(Protocol):
    """Memory that never moves. device: as ONNX Runtime names it. pointer: its address there."""

    @property
    def device(self) -> str: ...

    @property
    def pointer(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def rows(self, first: int, count: int) -> "Buffer":
        """The part [first : first + count], in the same memory."""
        ...

    def write(self, array: Array) -> None:
        """Copy `array`, of the buffer's shape and type, into it."""
        ...

    def read(self) -> Array:
        """What it holds; good until it is written again."""
        ...


class Place(Protocol):
    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Buffer: ...

    def copy_tokens(self, source: Buffer, target: Buffer, tokens: int) -> None:
        """Copy [:, :, :tokens] of `source` into `target`, both [rows, heads, capacity, head_dim]. Queued at least."""
        ...

    def synchronize(self) -> None:
        """Wait until queued copies are done."""
        ...

    def run_options(self, recording: int | None) -> Any:
        """onnxruntime's RunOptions for steps that are recorded under this number once and replayed, or never (None)."""
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

    def rows(self, first: int, count: int) -> "HostBuffer":
        return HostBuffer(self.array[first : first + count])

    def write(self, array: Array) -> None:
        self.array[...] = array

    def read(self) -> Array:
        return self.array


class Host:
    """A Place of numpy arrays. Nothing is recorded: a CPU is told what to do anew in every step."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> HostBuffer:
        return HostBuffer(np.zeros(shape, dtype))

    def copy_tokens(self, source: Buffer, target: Buffer, tokens: int) -> None:
        target.read()[:, :, :tokens] = source.read()[:, :, :tokens]

    def synchronize(self) -> None:
        pass

    def run_options(self, recording: int | None) -> None:
        return None


HOST = Host()
