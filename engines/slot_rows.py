"""Which row of a KV cache each slot lies in, and which rows must change places to lie together; knows no buffer.

An engine runs over consecutive rows. Sequences that decode together are made neighbours once, when one joins or leaves,
so that idle slots cost nothing and a step copies no cache.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """Two rows of a cache that change places, and how many tokens each of them holds before that."""

    one: int
    other: int
    tokens_of_one: int
    tokens_of_other: int


class SlotRows:
    """Slots in rows of a cache, at first in their order.

    alignment: the first row of a run must be a multiple of it.
    """

    def __init__(self, slots: int, alignment: int = 1) -> None:
        self._alignment = alignment
        self._rows = np.arange(slots)  # of each slot
        self._held = np.zeros(slots, np.int64)  # tokens in each row

    def rows_of(self, slots: Indices) -> Indices:
        return self._rows[slots]

    def hold(self, slots: Indices, tokens: Indices) -> None:
        """Note that each of these slots holds so many tokens from now on."""
        self._held[self._rows[slots]] = tokens

    def copied(self, source: int, target: int, tokens: int) -> tuple[int, int, int]:
        """The rows of two slots, the second of which holds the first's `tokens` from now on; and how many these are."""
        self.hold(np.array([target]), np.array([tokens]))
        return int(self._rows[source]), int(self._rows[target]), tokens

    def bring_together(self, slots: Indices) -> list[Swap]:
        """Put `slots` into consecutive rows, the ones that cost the fewest tokens to move; what must be swapped for it.

        Rows are as they will be after the swaps, which are for the caller to do.
        """
        count, every = len(slots), len(self._rows)
        chosen = np.zeros(every, np.bool_)
        chosen[self._rows[slots]] = True
        firsts = np.arange(0, every - count + 1, self._alignment)
        # Moved for a window: what chosen rows outside it hold, and what other rows inside it hold.
        moved = _window_sums(np.where(chosen, -self._held, self._held), count)[firsts]
        strangers = _window_sums((~chosen).astype(np.int64), count)[firsts]
        first = int(firsts[np.lexsort((firsts, strangers, moved))[0]])
        inside = np.zeros(every, np.bool_)
        inside[first : first + count] = True
        pairs = zip(np.flatnonzero(chosen & ~inside), np.flatnonzero(inside & ~chosen), strict=True)
        return [self._swap(int(one), int(other)) for one, other in pairs]

    def runs(self, slots: Indices) -> list[Indices]:
        """The indices of `slots`, in parts that lie in consecutive rows already."""
        order = np.argsort(self._rows[slots])
        return np.split(order, np.flatnonzero(np.diff(self._rows[slots][order]) != 1) + 1)

    def _swap(self, one: int, other: int) -> Swap:
        swap = Swap(one=one, other=other, tokens_of_one=int(self._held[one]), tokens_of_other=int(self._held[other]))
        self._held[[one, other]] = self._held[[other, one]]
        slots = [int(np.flatnonzero(self._rows == row)[0]) for row in (one, other)]
        self._rows[slots] = other, one
        return swap


def _window_sums(values: Indices, width: int) -> Indices:
    """[len(values) - width + 1] the sum of each window."""
    sums = np.concatenate([[0], values.cumsum()])
    found: Indices = sums[width:] - sums[:-width]
    return found
