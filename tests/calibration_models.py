"""Tiny checkpoints as calibration reads them, and random tokens for them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.reference.model import Model
from megrez.compile.calibrate.held_out import model_of
from megrez.compile.checkpoint import open_checkpoint


def open_model(folder: Path, positions: int) -> Model:
    return model_of(open_checkpoint(str(folder)), positions)


def random_tokens(samples: int, length: int, *, seed: int = 0, vocab: int = 320) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, vocab, (samples, length))
