"""Texts with one fact hidden in them, and the question about it; knows neither tokens nor models.

The test is "needle in a haystack" (Kamradt, 2023): is a fact found again at any depth of a long prompt?
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

_WHO = ("baker", "carpenter", "doctor", "farmer", "gardener", "librarian", "painter", "pilot", "sailor", "teacher")
_DID = ("carried", "cleaned", "found", "mended", "moved", "ordered", "painted", "sold", "wanted", "weighed")
_HOW = ("big", "blue", "cheap", "green", "heavy", "new", "old", "round", "small", "wooden")
_WHAT = ("basket", "bench", "boat", "chair", "clock", "door", "kettle", "ladder", "lamp", "table")
_WHERE = ("at the market", "behind the house", "by the river", "in the garden", "in the town hall", "near the bridge")
_WHEN = ("before breakfast", "in the morning", "on Monday", "on Friday", "in spring", "after the rain")
_NAMES = ("Amsterdam", "Bergen", "Cairo", "Dublin", "Helsinki", "Kyoto", "Lisbon", "Nairobi", "Quito", "Vienna")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needle:
    fact: str
    question: str
    answer: str


def make_needle(seed: int) -> Needle:
    """A number that no text contains by chance."""
    drawn = random.Random(seed)
    name, number = drawn.choice(_NAMES), str(drawn.randrange(100_000, 1_000_000))
    return Needle(
        fact=f"The secret number of {name} is {number}.",
        question=f"What is the secret number of {name}? Answer with the number only.",
        answer=number,
    )


def sentences(count: int, seed: int) -> list[str]:
    """The hay: everyday sentences without a number; the first ones are the same for every count."""
    drawn = random.Random(seed)

    def one() -> str:
        who, did, how, what, where, when = map(drawn.choice, (_WHO, _DID, _HOW, _WHAT, _WHERE, _WHEN))
        return f"The {who} {did} a {how} {what} {where} {when}."

    return [one() for _ in range(count)]


def build_prompt(hay: list[str], needle: Needle, depth: float) -> str:
    """depth: 0 puts the fact before all sentences, 1 after them."""
    at = round(depth * len(hay))
    text = " ".join([*hay[:at], needle.fact, *hay[at:]])
    return f"{text}\n\n{needle.question}"


def longest_prompt(needle: Needle, depth: float, seed: int, fits: Callable[[str], bool], most: int) -> str | None:
    """The prompt with the most sentences, up to `most`, that `fits`; None where not even one without any does."""
    hay = sentences(most, seed)
    low, high = -1, most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(build_prompt(hay[:middle], needle, depth)):
            low = middle
        else:
            high = middle - 1
    return None if low < 0 else build_prompt(hay[:low], needle, depth)
