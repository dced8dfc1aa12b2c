"""Prompt lookup against a search of the whole sequence for every token."""

import random
import sys

from megrez.runtime.serving.drafting import lookup
from megrez.runtime.serving.drafting.drafter import Wanted
from megrez.runtime.serving.drafting.lookup import CANDIDATES, LONGEST_MATCH, NGramIndex, PromptLookup


def searched(ids: list[int]) -> tuple[int, int]:
    """The position after the occurrence that matches the most tokens, of the latest with 4 tokens, or else with 2."""
    for size in (4, 2):
        ends = [at for at in range(size, len(ids)) if ids[at - size : at] == ids[-size:]]
        matches = [(shared(ids, at), at) for at in ends[::-1][:CANDIDATES]]
        if matches:
            most = max(length for length, _ in matches)
            return next(at for length, at in matches if length == most), most
    return 0, 0


def shared(ids: list[int], at: int) -> int:
    most = min(at, LONGEST_MATCH)
    return next((length for length in range(most) if ids[at - 1 - length] != ids[-1 - length]), most)


def test_the_longest_of_the_latest_matches_is_found_as_the_sequence_grows() -> None:
    for seed in range(20):
        draw = random.Random(seed)
        ids = draw.choices(range(draw.choice([2, 5, 12])), k=40)
        index = NGramIndex()
        for _ in range(60):
            index.extend(ids)
            assert index.longest(ids) == searched(ids)
            ids.extend(draw.choices(range(5), k=draw.randint(1, 3)))


def test_colliding_hashes_are_told_apart(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(lookup, "hash", lambda gram: 0, raising=False)
    index = NGramIndex()
    index.extend([1, 2, 3, 4, 5, 6, 7, 8])
    assert index.longest([1, 2, 3, 4, 5, 6, 7, 8]) == (0, 0)


def test_drafts_go_on_from_the_match_and_repeat_what_repeats() -> None:
    drafter = PromptLookup()
    ids = [7, 1, 2, 3, 4, 5, 9, 1, 2]
    assert len(drafter.prospects(0, ids, 3)) == 3
    assert drafter.draft([Wanted(slot=0, ids=ids, count=3)]) == [[3, 4, 5]]
    loop = [5, 1, 2, 3, 1, 2, 3, 1]
    assert len(drafter.prospects(1, loop, 7)) == 7
    assert drafter.draft([Wanted(slot=1, ids=loop, count=7)]) == [[2, 3, 1, 2, 3, 1, 2]]


def test_longer_matches_are_of_kinds_that_are_trusted_more() -> None:
    drafter = PromptLookup()
    kinds = drafter.prospects(0, [1, 2, 3, 1, 2], 15)
    assert list(kinds) == [0, 1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4]
    assert list(drafter.expected[:6]) == sorted(drafter.expected[:6]) and len(drafter.expected) == 9
    unlike = drafter.prospects(1, [1, 2, 3, 4], 15)
    assert list(unlike) == []


SOURCE = list(range(10, 40))


def copied(*changed: int, drafter: PromptLookup, slot: int = 0) -> list[int]:
    """SOURCE, its first ten tokens again, which is a copy, and what comes instead of the eleventh."""
    ids = [*SOURCE, *SOURCE[:10]]
    drafter.prospects(slot, ids, 3)
    for token in changed:
        ids.append(token)
        drafter.prospects(slot, ids, 3)
    return ids


def test_a_copy_goes_on_after_a_word_was_replaced() -> None:
    drafter = PromptLookup()
    ids = copied(98, 99, SOURCE[12], drafter=drafter)  # two tokens instead of two: the next one matches
    assert list(drafter.prospects(0, ids, 5)) == [6, 7, 7, 8, 8]
    assert drafter.draft([Wanted(slot=0, ids=ids, count=5)]) == [SOURCE[13:18]]
    ids = copied(98, 99, 97, SOURCE[11], drafter=drafter, slot=1)  # three tokens instead of one
    assert list(drafter.prospects(1, ids, 2)) == [6, 7]
    assert drafter.draft([Wanted(slot=1, ids=ids, count=2)]) == [SOURCE[12:14]]


def test_a_copy_goes_on_only_near_its_place_and_soon() -> None:
    drafter = PromptLookup()
    ids = copied(98, SOURCE[25], drafter=drafter)
    assert list(drafter.prospects(0, ids, 3)) == []
    ids = copied(*range(100, 100 + lookup.COPY_AGE), drafter=drafter, slot=1)
    assert list(drafter.prospects(1, [*ids, SOURCE[10 + lookup.COPY_AGE - 20]], 3)) == []


def test_a_released_slot_forgets_its_sequence() -> None:
    drafter = PromptLookup()
    drafter.prospects(0, [1, 2, 3, 1, 2], 3)
    drafter.release(0)
    assert list(drafter.prospects(0, [4, 1, 2], 3)) == []
    ids = copied(98, drafter=drafter)
    drafter.release(0)
    assert list(drafter.prospects(0, [*ids, SOURCE[11]], 3)) == []


def test_a_token_costs_the_same_wherever_it_stands() -> None:
    """Lines of Python that run for one more token, counted."""
    ids = [at % 50 for at in range(20_000)]

    def lines(count: int) -> int:
        seen, drafter = 0, PromptLookup()

        def trace(frame, event, argument):  # type: ignore[no-untyped-def]
            nonlocal seen
            seen += event == "line"
            return trace

        drafter.prospects(0, ids[: count - 1], 3)
        sys.settrace(trace)
        try:
            drafter.prospects(0, ids[:count], 3)
        finally:
            sys.settrace(None)
        return seen

    assert lines(20_000) <= lines(1_000) + 5
