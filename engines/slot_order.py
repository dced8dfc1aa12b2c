"""Maps slots to entries of the KV caches, which are indices of their batch dimension; independent of buffers.

An engine runs on consecutive entries. Sequences that decode together are moved to consecutive entries once, when one
joins or leaves, so that idle slots cost nothing and a step copies no cache.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """Two cache entries to swap, and how many tokens each of them holds before that."""

    one: int
    other: int
    tokens_of_one: int
    tokens_of_other: int


class SlotOrder:
    """The cache entry of each slot, initially its own index.

    alignment: the first entry of a group must be a multiple of it.
    """

    def __init__(self, slots: int, alignment: int = 1) -> None:
        self._alignment = alignment
        self._entries = np.arange(slots)  # per slot
        self._held = np.zeros(slots, np.int64)  # tokens per entry

    def entries_of(self, slots: Indices) -> Indices:
        return self._entries[slots]

    def hold(self, slots: Indices, tokens: NDArray[np.integer]) -> None:
        """Set how many tokens each of these slots holds."""
        self._held[self._entries[slots]] = tokens

    def copied(self, source: int, target: int, tokens: int) -> tuple[int, int, int]:
        """Note a copy of `tokens` tokens between two slots; returns their entries and `tokens`."""
        self.hold(np.array([target]), np.array([tokens]))
        return int(self._entries[source]), int(self._entries[target]), tokens

    def bring_together(self, slots: Indices) -> list[Swap]:
        """Move `slots` to the consecutive entries for which the fewest tokens must be moved; returns the swaps.

        The caller must carry out the swaps; this object is updated already.
        """
        entries = self._entries[slots].tolist()
        if max(entries) - min(entries) + 1 == len(slots) and min(entries) % self._alignment == 0:
            return []
        count, every = len(slots), len(self._entries)
        chosen = np.zeros(every, np.bool_)
        chosen[self._entries[slots]] = True
        firsts = np.arange(0, every - count + 1, self._alignment)
        # Tokens moved for a window: of chosen entries outside it, and of other entries inside it.
        moved = _window_sums(np.where(chosen, -self._held, self._held), count)[firsts]
        strangers = _window_sums((~chosen).astype(np.int64), count)[firsts]
        first = int(firsts[np.lexsort((firsts, strangers, moved))[0]])
        inside = np.zeros(every, np.bool_)
        inside[first : first + count] = True
        pairs = zip(np.flatnonzero(chosen & ~inside), np.flatnonzero(inside & ~chosen), strict=True)
        return [self._swap(int(one), int(other)) for one, other in pairs]

    def runs(self, slots: Indices) -> list[Indices]:
        """Indices into `slots`, split into parts whose entries are consecutive."""
        order = np.argsort(self._entries[slots])
        return np.split(order, np.flatnonzero(np.diff(self._entries[slots][order]) != 1) + 1)

    def _swap(self, one: int, other: int) -> Swap:
        swap = Swap(one=one, other=other, tokens_of_one=int(self._held[one]), tokens_of_other=int(self._held[other]))
        self._held[[one, other]] = self._held[[other, one]]
        slots = [int(np.flatnonzero(self._entries == entry)[0]) for entry in (one, other)]
        self._entries[slots] = other, one
        return swap


def _window_sums(values: Indices, width: int) -> Indices:
    """The sum of each window, [len(values) - width + 1]."""
    sums = np.concatenate([[0], values.cumsum()])
    found: Indices = sums[width:] - sums[:-width]
    return found
