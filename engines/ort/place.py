"""Where a session's buffers lie, and how numbers get there and back: here, in numpy arrays. Knows no graph."""

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

    def write(self, array: Array) -> None:
        """Copy `array`, of the buffer's shape and type, into it."""
        ...

    def read(self) -> Array:
        """What it holds; good until it is written again."""
        ...


class Place(Protocol):
    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Buffer: ...

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

    def write(self, array: Array) -> None:
        self.array[...] = array

    def read(self) -> Array:
        return self.array


class Host:
    """A Place of numpy arrays. Nothing is recorded: a CPU is told what to do anew in every step."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> HostBuffer:
        return HostBuffer(np.zeros(shape, dtype))

    def run_options(self, recording: int | None) -> None:
        return None


HOST = Host()
