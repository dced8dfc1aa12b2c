"""What `make gpu-check` says of a device's figures: nothing wrong is excused."""

from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_judge import compare

RANDOM = np.random.default_rng(0)


@pytest.fixture
def expected() -> dict[str, Any]:
    """Two ids whose logits nearly tie at the second step; the others are far ahead."""
    logits, steps = RANDOM.standard_normal((6, 50)), RANDOM.standard_normal((4, 50))
    steps[:, 7] = 4.0
    steps[1, 9] = 3.995
    return {"logits": logits, "steps": steps, "ids": [7, 7, 7, 7]}


def changed(expected: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**expected, "ragged": expected["logits"][[5, 2]], "ragged_positions": [5, 2], **changes}


def test_the_same_figures_are_right(expected: dict[str, Any]) -> None:
    row = compare(changed(expected), expected, "trt-fp16")
    assert (row["error"], row["logits_off"], row["ids_equal"], row["gap"]) == (None, 0.0, 4, None)


def test_an_id_may_differ_where_two_nearly_tie_and_nowhere_else(expected: dict[str, Any]) -> None:
    noisy = expected["logits"] + 0.006 * np.sign(expected["logits"])
    tied = compare(changed(expected, logits=noisy, ids=[7, 9, 1, 1]), expected, "trt-fp16")
    assert (tied["error"], tied["near_tie"], tied["ids_equal"]) == (None, True, 1)
    assert tied["gap"] == pytest.approx(0.005)
    far = compare(changed(expected, logits=noisy, ids=[7, 7, 9, 1]), expected, "trt-fp16")
    assert (far["error"], far["near_tie"]) == ("greedy id 2 differs", False)


@pytest.mark.parametrize("part", ["logits", "steps", "ragged"])
@pytest.mark.parametrize("spoil", [np.zeros_like, lambda x: x * np.nan, lambda x: x[::-1], lambda x: x[:1]])
def test_wrong_logits_are_told_wherever_they_are(expected: dict[str, Any], part: str, spoil: Any) -> None:
    found = changed(expected)
    row = compare({**found, part: spoil(found[part])}, expected, "trt-int8")
    assert row["error"] is not None and row["error"].startswith("logits are off by ")


def test_rounded_inputs_are_allowed_more(expected: dict[str, Any]) -> None:
    off = changed(expected, logits=expected["logits"] + 0.02 * np.abs(expected["logits"]).max())
    assert compare(off, expected, "trt-fp8")["error"] is None
    assert compare(off, expected, "trt-int4")["error"] == "logits are off by 2.0e-02 of the largest, 5e-03 is allowed"
