"""The base of checkpoints that are derived from another one; knows no derivation."""

from megrez.compile.checkpoint.protocol import Checkpoint, TextAssets
from megrez.compile.families.config import ModelConfig


def file_of(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint in a file from which `checkpoint` was derived, or itself."""
    while isinstance(checkpoint, DerivedCheckpoint):
        checkpoint = checkpoint.original
    return checkpoint


class DerivedCheckpoint:
    """The part of the Checkpoint `original` that does not depend on its weights."""

    def __init__(self, original: Checkpoint) -> None:
        self.original = original

    @property
    def source(self) -> str:
        return self.original.source

    @property
    def config(self) -> ModelConfig:
        return self.original.config

    @property
    def text(self) -> TextAssets | None:
        return self.original.text

    def check(self) -> None:
        self.original.check()

    def fingerprint(self) -> str:
        return self.original.fingerprint()
