"""A rotated checkpoint is the same model: its logits against transformers' of the original checkpoint."""

from typing import Any

import numpy as np
import pytest

from megrez.calibration.layerwise import reference_hidden_states
from megrez.compile.calibrate.held_out import model_of
from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.checkpoint.rotated import RotatedCheckpoint, random_signs, rotate, rotate_for
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


@pytest.mark.parametrize(
    ("n", "first", "digits"),
    [
        # printf 'megrez Hadamard rotation 64 0' | sha256sum, and so on: a set bit is -1, the most significant first.
        (64, 0, "dd7526721c35bd87"),
        (576, 0, "368de6c8fcb520ab5885441c99f48ee7b446e4b5c2f6ad7fc5efae46e31f6bed"),
        (576, 256, "2615316aeeb8e4a5e1485edf1a9254aab4619ec790bd4bce9a73897d4e9e8001"),
        (576, 512, "9002904fecee2f75"),
    ],
)
def test_signs_are_the_bits_of_sha_256(n: int, first: int, digits: str) -> None:
    signs = random_signs(n)
    assert signs.shape == (n,) and signs.dtype == np.float32
    expected = [-1.0 if bit == "1" else 1.0 for bit in f"{int(digits, 16):0{4 * len(digits)}b}"]
    assert signs[first : first + len(expected)].tolist() == expected


def test_the_first_signs_for_five_channels() -> None:
    assert random_signs(5).tolist() == [1, 1, -1, -1, 1]


@pytest.mark.parametrize("n", [64, 320])
def test_a_rotation_is_the_signs_then_flat_factors(n: int) -> None:
    """Undoing the signs leaves, for a power of two, Sylvester's Hadamard matrix."""
    unsigned = random_signs(n)[:, None] * rotate(np.eye(n, dtype=np.float32)).astype(np.float64)
    if n == 64:
        parity = [[(-1.0) ** bin(i & j).count("1") for j in range(n)] for i in range(n)]
        np.testing.assert_allclose(unsigned, np.array(parity) / 8, rtol=0, atol=1e-6)
    # The first basis function of each factor is constant: so is the column of them all.
    np.testing.assert_allclose(unsigned[:, 0], n**-0.5, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_logits_stay_those_of_transformers(checkpoint_of: Any, case: str) -> None:
    folder = checkpoint_of(**CASES[case])
    original = open_checkpoint(str(folder))
    rotated = rotate_for(original, find_target("cpu-int4"))
    assert (
        np.abs(
            rotated.read("model.layers.0.mlp.up_proj.weight") - original.read("model.layers.0.mlp.up_proj.weight")
        ).max()
        > 0.01
    )
    model, ids = model_of(rotated, len(IDS[0])), np.array([IDS[0]])
    found = model.lm_head()(reference_hidden_states(model, ids)[0])
    np.testing.assert_allclose(found, logits(folder, IDS[0]), rtol=0, atol=1e-4)


def test_only_targets_that_ask_are_rotated(checkpoint_of: Any) -> None:
    checkpoint = open_checkpoint(str(checkpoint_of(**CASES["qwen2"])))
    assert rotate_for(checkpoint, find_target("cpu-int8")) is checkpoint
    assert isinstance(rotate_for(checkpoint, find_target("cuda-int4")), RotatedCheckpoint)
