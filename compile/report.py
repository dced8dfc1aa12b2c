"""How a build reports its progress; knows no stage and no screen."""

from collections.abc import Callable
from typing import Protocol

Progress = Callable[[int], None]


class Report(Protocol):
    """Stages and how far each is."""

    def stage(self, name: str) -> None:
        """A stage begins."""
        ...

    def text(self, lines: str) -> None:
        """Lines to show as they are."""
        ...

    def weights(self, total: int) -> Progress:
        """Weights will be written, `total` bytes of them; call what is returned with each tensor's bytes."""
        ...

    def layers(self, total: int) -> Progress:
        """Layers will be walked, `total` of them; call what is returned with how many are done so far."""
        ...

    def phase(self, name: str, done: int, total: int) -> None:
        """A library that builds has done so many steps of a phase, by its own name of it."""
        ...
