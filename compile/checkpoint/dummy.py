"""Seeded random weights in a model's shape, for sizing and speed without a checkpoint; the values are meaningless."""

import hashlib
import math
from dataclasses import replace
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.weights.blocks import BlockFormat, BlockQuantized
from megrez.compile.checkpoint.fingerprint import fingerprint_of
from megrez.compile.checkpoint.json_file import read_object
from megrez.compile.checkpoint.protocol import TextAssets
from megrez.compile.checkpoint.tensors import expected_tensors
from megrez.compile.checkpoint.text import read_text_assets
from megrez.compile.families.config import read_config
from megrez.runtime.errors import CheckpointError

STD = 0.02
PIECE = 1 << 20


class DummyCheckpoint:
    """The Checkpoint that `config_file` (a config.json) describes, with `layers` layers where that is not None."""

    def __init__(self, config_file: Path, *, source: str, seed: int, layers: int | None) -> None:
        config = read_config(read_object(config_file))
        if layers is not None:
            windows = tuple(islice(cycle(config.sliding_windows), layers))
            config = replace(config, num_hidden_layers=layers, sliding_windows=windows)
        self._folder = config_file.parent
        self.source = source
        self._seed = seed
        self.config = config
        self._shapes = expected_tensors(config)

    @cached_property
    def text(self) -> TextAssets | None:
        return read_text_assets(self._folder, vocab_size=self.config.vocab_size)

    def check(self) -> None:
        _ = self.text

    def fingerprint(self) -> str:
        return fingerprint_of(self.config, salt=f"dummy weights of seed {self._seed}")

    def read(self, name: str) -> NDArray[np.float32]:
        if name not in self._shapes:
            raise CheckpointError(f"{self.source} has no tensor {name}: its config describes no such tensor")
        values = _noise(math.prod(self._shapes[name]), f"{self._seed}/{name}")
        values *= np.float32(STD)
        if name.endswith("norm.weight"):
            values += np.float32(1)
        return values.reshape(self._shapes[name])

    def block_format(self, name: str) -> BlockFormat | None:
        return None

    def blocks(self, name: str) -> BlockQuantized | None:
        """None: the weights are floats."""
        return None


def _noise(count: int, key: str) -> NDArray[np.float32]:
    """Roughly normal values of variance 1; the same for the same key on every machine.

    The sum of two random 16-bit integers: a triangular distribution, far faster than a normal one.
    """
    digest = hashlib.sha256(key.encode()).digest()
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))
    values = np.empty(count, np.float32)
    # Each half is uniform on [-32768, 32767] with variance 65536**2 / 12.
    scale = np.float32(math.sqrt(6) / 65536)
    for at in range(0, count, PIECE):
        piece = values[at : at + PIECE]
        halves = generator.integers(0, 1 << 64, (piece.size + 1) // 2, np.uint64).view(np.int16)
        np.add(halves[: piece.size], halves[-piece.size :], out=piece, dtype=np.float32)
        piece *= scale
    return values
