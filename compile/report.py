"""The interface by which a build reports its progress; knows no stage and no terminal."""

from collections.abc import Callable
from typing import Protocol

Progress = Callable[[int], None]


class Report(Protocol):
    """Receives stages and their progress."""

    def stage(self, name: str) -> None:
        """A stage begins."""
        ...

    def text(self, lines: str) -> None:
        """Lines to show as they are."""
        ...

    def weights(self, total: int) -> Progress:
        """`total` bytes of weights are going to be written; call the result with each tensor's bytes."""
        ...

    def layers(self, total: int) -> Progress:
        """`total` layers are going to be processed; call the result with the number done so far."""
        ...

    def phase(self, name: str, done: int, total: int) -> None:
        """The engine's builder has done `done` of `total` steps of its phase `name`."""
        ...
