"""What a session asks of the device that holds its engine; knows no GPU and no library.

One stream: what is queued is done in that order, and at the latest when `synchronize` returns.
"""

from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]
# An engine's optimization profiles.
DECODE, PREFILL = 0, 1


class Graph(Protocol):
    """One step, recorded with its shapes and addresses."""

    def launch(self) -> None:
        """Queue the step."""
        ...


class Context(Protocol):
    """An engine under one of its optimization profiles."""

    def bind(self, name: str, address: int) -> None:
        """Let the tensor `name` lie at `address`."""
        ...

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Of an input, for the next step; raises EngineError outside the profile's range."""
        ...

    def enqueue(self) -> None:
        """Queue a step; raises EngineError when the engine refuses it."""
        ...

    def capture(self) -> Graph | None:
        """Record a step without running it; None where that cannot be done, or the device replays steps by itself."""
        ...


class Device(Protocol):
    """Memory and one stream. Addresses are of the device; host arrays come from `pin`."""

    def free_bytes(self) -> int: ...

    def allocate(self, size: int) -> int:
        """The address of `size` bytes of zeros."""
        ...

    def pin(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array that the device can copy from and to while the host goes on."""
        ...

    def upload(self, address: int, array: Array) -> None:
        """Queue a copy; `array` must stay as it is until then."""
        ...

    def download(self, address: int, array: Array) -> None:
        """Queue a copy into `array`."""
        ...

    def copy(self, target: int, source: int, *, size: int, pitch: int, pieces: int) -> None:
        """Queue a copy within the device: `pieces` of `size` bytes, which begin `pitch` bytes apart on both sides."""
        ...

    def open_context(self, profile: int) -> Context: ...

    def synchronize(self) -> None:
        """Wait until all that was queued is done; raises EngineError if some of it failed."""
        ...

    def close(self) -> None: ...
