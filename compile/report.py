"""Who is told how far a build is; knows no stage and no screen."""

from collections.abc import Callable
from typing import Protocol

Progress = Callable[[int], None]


class Report(Protocol):
    """Stages and how far each is."""

    def stage(self, name: str) -> None:
        """A stage begins."""
        ...

    def text(self, lines: str) -> None:
        """Something to read."""
        ...

    def weights(self, total: int) -> Progress:
        """Weights will be written, `total` bytes of them; the answer is called with each tensor's bytes."""
        ...

    def layers(self, total: int) -> Progress:
        """Layers will be walked, `total` of them; the answer is called with how many are done so far."""
        ...

    def phase(self, name: str, done: int, total: int) -> None:
        """A tool of others has done so many steps of a phase that it names."""
        ...
