"""What a drafter is: it guesses the tokens that follow a sequence. What the engine generates does not depend on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Draft = list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """count: tokens to draft after `ids`, which are the prompt and the output of the sequence in `slot`."""

    slot: int
    ids: Sequence[int]
    count: int


class Drafter(Protocol):
    """Tokens that it drafts are of numbered kinds, for each of which acceptance is estimated separately."""

    @property
    def expected(self) -> Sequence[float]:
        """By kind, the probability that a token is accepted if those before it are, as long as nothing was measured."""
        ...

    @property
    def seconds(self) -> float:
        """What one more token takes, drafted for all sequences at once; 0 if that is next to nothing."""
        ...

    def prospects(self, slot: int, ids: Sequence[int], most: int) -> Sequence[int]:
        """The kinds of the tokens, up to `most`, that `draft` would return; empty if it has none. Takes no time.

        ids: prompt and output; between calls for the same slot they only grow, unless it was released.
        """
        ...

    def draft(self, wanted: Sequence[Wanted]) -> list[Draft]:
        """Up to `count` tokens for each, in order, after `prospects` was asked for the same ids; perhaps none."""
        ...

    def release(self, slot: int) -> None:
        """The slot's sequence has ended."""
        ...

    def close(self) -> None:
        """Free what the drafter holds; further calls do nothing."""
        ...
