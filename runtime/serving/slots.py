"""Which tokens each slot of the KV cache holds, and which slot suits the next prompt; moves no data itself."""

from collections.abc import Sequence
from dataclasses import dataclass

# A shorter common prefix is recomputed faster than it is copied and looked after.
LEAST_COPY = 16
# A slot is continued in place where the prompt shares at least this part of what it holds: below it, the cached tokens
# belong to another conversation, which may come back.
SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Where a sequence goes: `length` leading tokens are cached, in `slot` itself or to be copied from `source`."""

    slot: int
    length: int
    source: int | None


class SlotPool:
    """The slots of a session. A slot keeps its tokens when its sequence ends: the next prompt may begin with them."""

    def __init__(self, count: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(count)]
        self._free = list(range(count))  # the least recently used first

    @property
    def free(self) -> int:
        return len(self._free)

    def assign(self, prompt: Sequence[int], *, reuse: bool = True) -> Assignment:
        """Take a free slot for `prompt`; there must be one. At least the prompt's last token stays to be computed.

        The slot that shares the longest prefix is continued where most of what it holds is shared; else the least
        recently used slot gets a copy of the prefix, and both conversations keep their caches.
        """
        shared = [common_prefix(held, prompt, len(prompt) - 1) if reuse else 0 for held in self.tokens]
        best = max(self._free, key=lambda slot: shared[slot])
        if shared[best] and shared[best] >= SHARE * len(self.tokens[best]):
            chosen, source = best, None
        else:
            chosen = min(self._free, key=lambda slot: (bool(self.tokens[slot]), self._free.index(slot)))
            source = max(range(len(shared)), key=shared.__getitem__)
        if source == chosen or (source is not None and shared[source] < max(LEAST_COPY, shared[chosen] + 1)):
            source = None
        length = shared[chosen if source is None else source]
        self._free.remove(chosen)
        self.tokens[chosen] = list(prompt[:length])
        return Assignment(slot=chosen, length=length, source=source)

    def extend(self, slot: int, tokens: Sequence[int]) -> None:
        """The session has cached `tokens` behind what the slot held."""
        self.tokens[slot] += tokens

    def release(self, slot: int) -> None:
        """The sequence of the slot has ended; the slot becomes the most recently used of the free ones."""
        self._free.append(slot)

    def forget(self, slot: int) -> None:
        """The slot's contents are not to be trusted."""
        self.tokens[slot] = []


def common_prefix(held: Sequence[int], prompt: Sequence[int], most: int) -> int:
    """How many leading tokens both have, up to `most`."""
    most = min(most, len(held))
    if list(held[:most]) == list(prompt[:most]):
        return most
    return next(at for at in range(most) if held[at] != prompt[at])
