"""What checkpoints that are made from another one have in common with it; knows no way of making them."""

from megrez.compile.checkpoint.protocol import Checkpoint, TextAssets
from megrez.compile.families.config import ModelConfig


def file_of(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint that others were made from, as its file has it."""
    while isinstance(checkpoint, DerivedCheckpoint):
        checkpoint = checkpoint.original
    return checkpoint


class DerivedCheckpoint:
    """The part of the Checkpoint `original` that other weights leave as it is."""

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
