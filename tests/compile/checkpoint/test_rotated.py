"""A turned checkpoint is the same model: its logits against transformers' of the checkpoint it was made of."""

from typing import Any

import numpy as np
import pytest

from megrez.calibration.walk import walk_exact
from megrez.compile.calibrate.held_out import model_of
from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.checkpoint.rotated import RotatedCheckpoint, rotate, rotate_for
from megrez.engines.targets import find_target
from tests.graphs import IDS
from tests.reference import logits

CASES: dict[str, dict[str, Any]] = {
    "llama-tied-with-biases": {"family": "llama", "biases": True, "tied": True},
    "llama-untied": {"family": "llama", "tied": False},
    "mistral-window": {"family": "mistral", "sliding_window": 5},
    "qwen2": {"family": "qwen2"},
    "qwen3-tied": {"family": "qwen3", "tied": True},
}


@pytest.mark.parametrize("n", [2, 5, 64, 96, 128, 576, 2560])
def test_rotations_are_orthogonal_and_spread_one_channel_over_all(n: int) -> None:
    matrix = rotate(np.eye(n, dtype=np.float32)).astype(np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(n), rtol=0, atol=1e-6)
    assert np.abs(matrix).max() <= 1.001 * (2 / n) ** 0.5


@pytest.mark.parametrize("case", CASES)
def test_answers_stay_those_of_transformers(checkpoint_of: Any, case: str) -> None:
    folder = checkpoint_of(**CASES[case])
    original = open_checkpoint(str(folder))
    turned = rotate_for(original, find_target("cpu-int4"))
    assert (
        np.abs(
            turned.read("model.layers.0.mlp.up_proj.weight") - original.read("model.layers.0.mlp.up_proj.weight")
        ).max()
        > 0.01
    )
    model, ids = model_of(turned, len(IDS[0])), np.array([IDS[0]])
    found = model.head()(walk_exact(model, ids)[0])
    np.testing.assert_allclose(found, logits(folder, IDS[0]), rtol=0, atol=1e-4)


def test_only_targets_that_ask_are_turned(checkpoint_of: Any) -> None:
    checkpoint = open_checkpoint(str(checkpoint_of(**CASES["qwen2"])))
    assert rotate_for(checkpoint, find_target("cpu-int8")) is checkpoint
    assert isinstance(rotate_for(checkpoint, find_target("cuda-int4")), RotatedCheckpoint)
