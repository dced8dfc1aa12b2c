"""Which projection groups to keep in higher precision for a budget of KL divergence; knows no weight."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One group: the divergence of quantising it alone, in nats, and the bytes that higher precision costs."""

    name: str
    divergence: float
    bytes: int


def choose_higher_precision(choices: Mapping[str, Choice], budget: float) -> frozenset[str]:
    """The groups to keep in higher precision, most divergence saved per byte first, until the rest is within `budget`.

    Divergences of single groups are additive while they are small; the caller measures the choice as a whole.
    """
    left = sum(choice.divergence for choice in choices.values())
    higher_precision = set[str]()
    for choice in sorted(choices.values(), key=lambda one: (-one.divergence / max(one.bytes, 1), one.name)):
        if left <= budget:
            break
        higher_precision.add(choice.name)
        left -= choice.divergence
    for choice in sorted((choices[name] for name in higher_precision), key=lambda one: -one.bytes):
        # A group chosen early may no longer be needed.
        if left + choice.divergence <= budget:
            higher_precision.remove(choice.name)
            left += choice.divergence
    return frozenset(higher_precision)


def remaining(choices: Mapping[str, Choice], higher_precision: frozenset[str]) -> float:
    """The sum of the divergences of the groups that are not in higher precision."""
    return sum(choice.divergence for choice in choices.values() if choice.name not in higher_precision)
