"""The interface between a session and the device of its engine; independent of CUDA and TensorRT.

There is one stream: work runs in the order in which it is queued, and is complete when `synchronize` returns.
"""

from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]
# An engine's optimization profiles.
DECODE, PREFILL = 0, 1


class Graph(Protocol):
    """A recorded step, with fixed shapes and addresses."""

    def launch(self) -> None:
        """Queue the step."""
        ...


class Context(Protocol):
    """An execution context with one of the engine's optimization profiles."""

    def bind(self, name: str, address: int) -> None:
        """Set the address of the tensor `name`."""
        ...

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Set the shape of an input for the next step; raises EngineError outside the profile's range."""
        ...

    def enqueue(self) -> None:
        """Queue a step; raises EngineError if the engine rejects it."""
        ...

    def capture(self) -> Graph | None:
        """Record a step without running it; None if that is impossible, or the device replays steps itself."""
        ...


class Device(Protocol):
    """Device memory and one stream. Addresses are device addresses; host arrays come from `pin`."""

    def free_bytes(self) -> int: ...

    def allocate(self, size: int) -> int:
        """Allocate `size` bytes of zeros and return their address."""
        ...

    def pin(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array in page-locked host memory, for asynchronous copies."""
        ...

    def upload(self, address: int, array: Array) -> None:
        """Queue a copy to the device; `array` must not change before it is done."""
        ...

    def download(self, address: int, array: Array) -> None:
        """Queue a copy from the device to `array`."""
        ...

    def copy(self, target: int, source: int, *, size: int, pitch: int, pieces: int) -> None:
        """Queue a copy on the device: `pieces` of `size` bytes, `pitch` bytes apart in source and target."""
        ...

    def open_context(self, profile: int) -> Context: ...

    def synchronize(self) -> None:
        """Wait for all queued work; raises EngineError if some of it failed."""
        ...

    def close(self) -> None: ...
