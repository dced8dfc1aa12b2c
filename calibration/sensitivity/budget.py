"""Which projection groups to keep finer so that a model stays within a budget of KL divergence; knows no weight."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One group: the divergence of quantising it alone, in nats, and the bytes that keeping it finer costs."""

    name: str
    divergence: float
    bytes: int


def choose_finer(choices: Mapping[str, Choice], budget: float) -> frozenset[str]:
    """The names to keep finer, most divergence saved per byte first, until the others' sum is within `budget`.

    Divergences of single groups add up while they are small; the caller measures what the choice costs together.
    """
    left = sum(choice.divergence for choice in choices.values())
    finer = set[str]()
    for choice in sorted(choices.values(), key=lambda one: (-one.divergence / max(one.bytes, 1), one.name)):
        if left <= budget:
            break
        finer.add(choice.name)
        left -= choice.divergence
    for choice in sorted((choices[name] for name in finer), key=lambda one: -one.bytes):
        # One chosen before another that saves more may no longer be needed.
        if left + choice.divergence <= budget:
            finer.remove(choice.name)
            left += choice.divergence
    return frozenset(finer)


def remaining(choices: Mapping[str, Choice], finer: frozenset[str]) -> float:
    """The sum of the divergences of the groups that are not finer."""
    return sum(choice.divergence for choice in choices.values() if choice.name not in finer)
