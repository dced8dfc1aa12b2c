"""Lengths of drafts against all choices there are; estimates of costs and acceptance."""

import itertools
import random

import pytest

from megrez.runtime.serving.drafting.estimates import Acceptance, StepCosts
from megrez.runtime.serving.drafting.lengths import LEAST_GAIN, MOST_ROWS, best_lengths, even_lengths


def measured(seconds: dict[int, float]) -> StepCosts:
    costs = StepCosts()
    for rows, one in seconds.items():
        costs.note(rows, one)
    return costs


def rate(lengths: tuple[int, ...], chances: list[list[float]], costs: StepCosts, drafting_s: float) -> float:
    tokens = len(lengths) + sum(sum(own[:length]) for own, length in zip(chances, lengths, strict=True))
    return tokens / (costs.of(len(lengths) + sum(lengths)) + max(lengths) * drafting_s)


@pytest.mark.parametrize("drafting_s", [0.0, 0.3])
def test_no_other_lengths_yield_more_tokens_a_second(drafting_s: float) -> None:
    """Where the cost of a row does not fall as there are more, and each step of drafting is for all."""
    for seed in range(100):
        draw = random.Random(seed)
        costs = measured({1: 1.0, 4: 1.0 + draw.random(), 16: 2.0 + 4 * draw.random()})
        chances = []
        for _ in range(draw.randint(1, 2 if drafting_s else 3)):
            chance, own = 1.0, []
            for _ in range(draw.randint(0, 5)):
                chance *= draw.random() if draw.random() < 0.5 else 0.95
                own.append(chance)
            chances.append(own)
        found = tuple(best_lengths(chances, costs, drafting_s=drafting_s))
        every = itertools.product(*(range(len(own) + 1) for own in chances))
        best = max(rate(lengths, chances, costs, drafting_s) for lengths in every)
        plain = rate((0,) * len(chances), chances, costs, drafting_s)
        if not any(found):
            assert best <= plain * LEAST_GAIN + 1e-9 or (drafting_s and len(chances) > 1)
        elif not drafting_s or len(chances) == 1:
            assert rate(found, chances, costs, drafting_s) == pytest.approx(best)
        assert rate(found, chances, costs, drafting_s) >= plain - 1e-9


def test_many_sequences_share_the_rows() -> None:
    costs = measured({1: 1.0, 2: 1.0})
    lengths = best_lengths([[0.99] * 15] * 10, costs, drafting_s=0.0)
    assert sum(lengths) == MOST_ROWS - 10 and max(lengths) - min(lengths) <= 1
    assert best_lengths([[0.9] * 15] * MOST_ROWS, costs, drafting_s=0.0) == [0] * MOST_ROWS
    assert even_lengths([15] * 10) == [5] * 10 and even_lengths([15]) == [15] and even_lengths([15] * 64) == [0] * 64


def test_costs_between_measured_ones_are_interpolated_and_beyond_them_continued() -> None:
    costs = measured({1: 10.0})
    assert not costs.known and costs.of(1) == 10 and 10 < costs.of(2) < costs.of(16) < 30
    costs.note(4, 16.0)
    assert costs.known
    assert (costs.of(2), costs.of(3), costs.of(4), costs.of(6)) == (12, 14, 16, 20)
    costs.note(3, 13.0)
    assert (costs.of(2), costs.of(3)) == (11.5, 13)
    assert measured({8: 5.0}).of(2) == 5


def test_costs_follow_what_is_measured_and_do_not_believe_a_first_surprise() -> None:
    costs = measured({1: 10.0, 4: 500.0})
    assert costs.of(4) <= 30
    for _ in range(40):
        costs.note(1, 20.0)
    assert costs.of(1) == pytest.approx(20, rel=0.01)


def test_acceptance_begins_with_what_is_expected_and_follows_what_is_seen() -> None:
    acceptance = Acceptance([0.2, 0.9].__getitem__, 2, memory=20, weight=3)
    assert (acceptance.of(0), acceptance.of(1)) == pytest.approx((0.2, 0.9))
    for _ in range(200):
        acceptance.note(0, True)
        acceptance.note(1, False)
    assert acceptance.of(0) > 0.85 and acceptance.of(1) < 0.15
