"""Tracks which tokens each slot of the KV cache holds, and chooses a slot for each prompt; moves no data itself."""

from collections.abc import Sequence
from dataclasses import dataclass

# Below this length a common prefix is recomputed: a copy saves nothing.
LEAST_COPY = 16
# A slot is reused in place if the prompt shares at least this fraction of its tokens. Below it, they belong to another
# conversation, which may continue later.
SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The slot of a sequence: its first `length` tokens are cached, in `slot` itself or to be copied from `source`."""

    slot: int
    length: int
    source: int | None


class SlotPool:
    """The slots of a session. A slot keeps its tokens after its sequence ends, for prompts that begin with them."""

    def __init__(self, count: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(count)]
        self._free = list(range(count))  # the least recently used first

    @property
    def free(self) -> int:
        return len(self._free)

    def assign(self, prompt: Sequence[int], *, reuse: bool = True) -> Assignment:
        """Take a free slot for `prompt`; there must be one. At least the prompt's last token is left to be computed.

        The slot with the longest common prefix is reused if the prompt shares most of its tokens. Otherwise the least
        recently used slot gets a copy of the prefix, and both conversations stay cached.
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
        """Note that the session has appended `tokens` to the slot."""
        self.tokens[slot] += tokens

    def release(self, slot: int) -> None:
        """Free the slot; it becomes the most recently used free one."""
        self._free.append(slot)

    def forget(self, slot: int) -> None:
        """Mark the slot's contents as invalid."""
        self.tokens[slot] = []


def common_prefix(held: Sequence[int], prompt: Sequence[int], most: int) -> int:
    """The length of the common prefix, up to `most`."""
    most = min(most, len(held))
    if list(held[:most]) == list(prompt[:most]):
        return most
    return next(at for at in range(most) if held[at] != prompt[at])
