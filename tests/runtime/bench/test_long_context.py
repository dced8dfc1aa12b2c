"""Decoding at several lengths, on a session whose steps take a second per thousand cached tokens, by its own clock."""

import numpy as np
import pytest

from megrez.runtime.bench.long_context import (
    STEPS,
    default_lengths,
    length_table,
    measure_lengths,
    summarise_lengths,
)
from megrez.runtime.errors import UsageError
from megrez.runtime.session import FakeSession


class Growing(FakeSession):
    now = 0.0

    def __init__(self, capacity: int) -> None:
        super().__init__(vocab_size=50, capacity=capacity)
        self.read: list[tuple[int, int]] = []

    def step(self, tokens, starts, logits_index, **named):
        if np.size(tokens) > 1:
            self.read.append((int(starts[0]), int(starts[0]) + np.size(tokens)))
            self.now += np.size(tokens) / 500
        else:
            self.now += 0.5 + starts[0] / 1000
        return super().step(tokens, starts, logits_index, **named)


def measured(session: Growing, lengths, repeat: int = 2):
    return list(measure_lengths(session, lengths, repeat=repeat, seed=0, clock=lambda: session.now))


def test_each_length_costs_what_its_cache_does_and_the_prompt_is_read_once():
    session = Growing(1200)
    points = measured(session, (1000, 128, 700))
    assert session.read == [(0, 128), (128, 640), (640, 700), (700, 1000)]  # chunks of 512
    for point, length in zip(points, (128, 700, 1000), strict=True):
        assert point["length"] == length
        assert point["decode_step_s"] == pytest.approx(0.5 + (length + (STEPS - 1) / 2) / 1000)
        assert point["prefill_tokens_per_s"] == pytest.approx(500)
        assert point["spread"] == pytest.approx(0) and len(point["repetitions"]) == 2


def test_the_line_through_the_points_has_the_cost_of_a_cached_token():
    found = summarise_lengths(measured(Growing(1200), (128, 256, 1000)))
    assert found["step_s_per_cached_token"] == pytest.approx(1e-3)
    assert found["step_s_without_cache"] == pytest.approx(0.5 + (STEPS - 1) / 2 / 1000)
    assert "1000.000 ms more per thousand cached tokens" in length_table(found)


def test_one_length_has_no_line_and_one_repetition_no_spread():
    found = summarise_lengths(measured(Growing(300), (128,), repeat=1))
    assert (found["step_s_per_cached_token"], found["spread"]) == (None, {})


def test_lengths_double_up_to_all_that_the_context_holds():
    assert default_lengths(1024) == (128, 256, 512, 1008)
    assert default_lengths(144) == (128,)


@pytest.mark.parametrize("lengths", [(0, 128), (128, 285), ()])
def test_lengths_that_do_not_fit_are_refused_before_anything_runs(lengths):
    session = Growing(300)
    with pytest.raises(UsageError, match="choose lengths from 1 to 284"):
        measure_lengths(session, lengths, repeat=1, seed=0)
    assert session.read == []
