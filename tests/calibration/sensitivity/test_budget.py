"""Which groups stay finer, against every possible choice."""

import itertools

import pytest

from megrez.calibration.sensitivity.budget import Choice, choose_higher_precision, remaining

CHOICES = {
    name: Choice(name=name, divergence=divergence, bytes=size)
    for name, divergence, size in (("a", 5.0, 10), ("b", 4.0, 4), ("c", 1.0, 1), ("d", 0.5, 8), ("e", 0.0, 2))
}


def test_a_budget_that_all_of_it_fits_keeps_nothing_finer() -> None:
    assert choose_higher_precision(CHOICES, 10.5) == frozenset()


def test_a_budget_of_nothing_keeps_all_that_costs_something() -> None:
    assert choose_higher_precision(CHOICES, 0.0) == {"a", "b", "c", "d"}


@pytest.mark.parametrize("budget", [0.4, 0.5, 1.2, 2.0, 4.5, 5.5, 6.0, 9.0])
def test_the_choice_is_within_the_budget_and_nothing_in_it_is_superfluous(budget: float) -> None:
    finer = choose_higher_precision(CHOICES, budget)
    assert remaining(CHOICES, finer) <= budget
    for name in finer:
        assert remaining(CHOICES, finer - {name}) > budget


@pytest.mark.parametrize("budget", [0.5, 1.0, 1.5, 5.0, 6.0])
def test_the_choice_costs_at_most_one_group_more_than_the_cheapest(budget: float) -> None:
    finer = choose_higher_precision(CHOICES, budget)
    subsets = itertools.chain.from_iterable(itertools.combinations(CHOICES, n) for n in range(len(CHOICES) + 1))
    sizes = [sum(CHOICES[name].bytes for name in s) for s in subsets if remaining(CHOICES, frozenset(s)) <= budget]
    assert sum(CHOICES[name].bytes for name in finer) <= min(sizes) + max(one.bytes for one in CHOICES.values())
