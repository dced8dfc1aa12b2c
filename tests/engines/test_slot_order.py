"""Slots come to lie in consecutive entries for the fewest tokens moved, and each keeps what it held."""

import itertools

import numpy as np
import pytest

from megrez.engines.slot_order import SlotOrder, Swap

SLOTS = 5


def carried_out(contents: list[list[int]], swaps: list[Swap]) -> int:
    """Swap entries as a cache would, only so many tokens of each; how many were moved."""
    for swap in swaps:
        one, other = contents[swap.one], contents[swap.other]
        contents[swap.one], contents[swap.other] = other[: swap.tokens_of_other], one[: swap.tokens_of_one]
    return sum(swap.tokens_of_one + swap.tokens_of_other for swap in swaps)


def cheapest(held: dict[int, int], chosen: set[int], alignment: int) -> int:
    """The fewest tokens that any arrangement moves. held: of each entry."""
    costs = []
    for first in range(0, SLOTS - len(chosen) + 1, alignment):
        window = set(range(first, first + len(chosen)))
        costs.append(sum(held[entry] for entry in chosen ^ window))
    return min(costs)


@pytest.mark.parametrize("alignment", [1, 2, 8])
def test_every_slot_keeps_its_tokens_and_the_fewest_are_moved(alignment: int) -> None:
    random = np.random.default_rng(alignment)
    order = SlotOrder(SLOTS, alignment)
    held = {slot: [100 * slot + at for at in range(slot)] for slot in range(SLOTS)}
    contents = [held[slot] for slot in range(SLOTS)]
    order.hold(np.arange(SLOTS), np.arange(SLOTS))
    for _ in range(60):
        slot, length = (int(one) for one in random.integers(0, SLOTS, 2))
        held[slot] = list(range(100 * slot, 100 * slot + length))
        contents[order.entries_of(np.array([slot]))[0]] = held[slot]
        order.hold(np.array([slot]), np.array([length]))
        chosen = random.permutation(SLOTS)[: random.integers(1, SLOTS + 1)]
        least = cheapest(dict(enumerate(map(len, contents))), set(order.entries_of(chosen).tolist()), alignment)
        assert carried_out(contents, order.bring_together(chosen)) == least
        placed = np.sort(order.entries_of(chosen))
        assert placed[0] % alignment == 0 and (np.diff(placed) == 1).all()
        assert [contents[entry] for entry in order.entries_of(np.arange(SLOTS))] == [
            held[slot] for slot in range(SLOTS)
        ]


def test_neighbours_are_left_where_they_are() -> None:
    order = SlotOrder(SLOTS)
    order.hold(np.arange(SLOTS), np.full(SLOTS, 7))
    for first, last in itertools.combinations(range(SLOTS + 1), 2):
        assert order.bring_together(np.arange(first, last)) == []


def test_one_that_leaves_costs_one_swap() -> None:
    """Entry 1 leaves, and entry 0 or 3 takes its place: 3 moves 4 + 5 tokens, 0 would move 9 + 5."""
    order = SlotOrder(4)
    order.hold(np.arange(4), np.array([9, 5, 2, 4]))
    assert order.bring_together(np.array([3, 0, 2])) == [Swap(one=3, other=1, tokens_of_one=4, tokens_of_other=5)]


def test_runs_are_of_neighbours() -> None:
    order = SlotOrder(SLOTS)
    order.bring_together(np.array([0, 4]))  # slots 1 and 4 change places
    slots = np.array([3, 4, 0, 1])
    assert [slots[part].tolist() for part in order.runs(slots)] == [[0, 4], [3, 1]]
