"""A smaller model drafts what it would answer itself, greedily (Leviathan et al., 2023)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from megrez.runtime.serving.drafting.drafter import Draft, Wanted
from megrez.runtime.serving.slots import LEAST_COPY, common_prefix
from megrez.runtime.session import Session

# Of a sequence that the draft model has not read yet, the most tokens that it reads before a step of the engine.
CHUNK = 256
# A step that reads more tokens of a sequence than this says nothing about what drafting costs.
_CAUGHT_UP = 16
_SMOOTHING = 0.25


@dataclass(slots=True, kw_only=True)
class _Slot:
    """held: the tokens of the draft model's slot. certain: how many of them begin its sequence, at least."""

    held: list[int] = field(default_factory=list)
    certain: int = 0


class DraftModel:
    """A Drafter. Each slot of the engine has one of the same number in the draft model's session."""

    # All tokens are of one kind.
    expected = (0.7,)

    def __init__(self, session: Session, *, vocab_size: int) -> None:
        """vocab_size: of the model that is drafted for; ids from there on are not drafted."""
        self._session, self._vocab_size = session, vocab_size
        self._slots = [_Slot() for _ in range(session.slots)]
        self.seconds = 0.0

    def prospects(self, slot: int, ids: Sequence[int], most: int) -> Sequence[int]:
        # The last drafted token is not fed back, so it needs no space.
        return (0,) * min(most, self._session.capacity - len(ids) + 1)

    def draft(self, wanted: Sequence[Wanted]) -> list[Draft]:
        """A sequence that takes long to catch up with is read chunk by chunk, and gets drafts once that is done."""
        ready = [one for one in wanted if self._read(one)]
        drafts: dict[int, Draft] = {one.slot: [] for one in wanted}
        growing = ready
        while growing:
            for one, token in zip(growing, self._next(growing, drafts), strict=True):
                drafts[one.slot].append(token)
            growing = [one for one in growing if len(drafts[one.slot]) < one.count]
        return [self._known(drafts[one.slot]) for one in wanted]

    def release(self, slot: int) -> None:
        self._slots[slot].certain = 0

    def close(self) -> None:
        self._session.close()

    def _read(self, one: Wanted) -> bool:
        """Have all tokens but a few cached; False if that takes more steps. Afterwards `held` begins the sequence."""
        own = self._slots[one.slot]
        own.certain = min(own.certain, len(one.ids) - 1)
        own.certain += common_prefix(own.held[own.certain :], one.ids[own.certain :], len(one.ids) - 1 - own.certain)
        if len(one.ids) - own.certain > LEAST_COPY:
            self._copy(one)
        del own.held[own.certain :]
        missing = len(one.ids) - own.certain
        if missing > _CAUGHT_UP:
            self._feed([one], [one.ids[own.certain : own.certain + min(CHUNK, missing - 1)]], wanted=False)
        return missing <= CHUNK

    def _copy(self, one: Wanted) -> None:
        """Take from another slot what it holds of the sequence, such as the prompt of its siblings."""
        own = self._slots[one.slot]
        most = len(one.ids) - 1
        shared, source = max((common_prefix(slot.held, one.ids, most), at) for at, slot in enumerate(self._slots))
        if source != one.slot and shared >= own.certain + LEAST_COPY:
            self._session.copy(source, one.slot, shared)
            own.held, own.certain = list(one.ids[:shared]), shared

    def _next(self, growing: Sequence[Wanted], drafts: dict[int, Draft]) -> list[int]:
        """One more token for each."""
        missing = []
        for one in growing:
            held = len(self._slots[one.slot].held)
            missing.append([*one.ids[held:], *drafts[one.slot][max(held - len(one.ids), 0) :]])
        began = time.perf_counter()
        tokens = self._feed(growing, missing, wanted=True)
        taken = time.perf_counter() - began
        self.seconds += (_SMOOTHING if self.seconds else 1.0) * (taken - self.seconds)
        return tokens

    def _feed(self, sequences: Sequence[Wanted], tokens: Sequence[Sequence[int]], *, wanted: bool) -> list[int]:
        """Append the tokens to the slots; if wanted, the most probable next token of each."""
        counts = np.array([len(own) for own in tokens], np.int64)
        slots = [self._slots[one.slot] for one in sequences]
        logits = self._session.step(
            np.concatenate([np.asarray(own, np.int64) for own in tokens]),
            np.array([len(slot.held) for slot in slots], np.int32),
            counts.cumsum() - 1 if wanted else np.zeros(0, np.int64),
            slots=np.array([one.slot for one in sequences], np.int64),
            counts=counts,
        )
        for one, slot, own in zip(sequences, slots, tokens, strict=True):
            slot.held += own
            slot.certain = min(len(slot.held), len(one.ids))
        return [int(token) for token in logits.argmax(axis=1)] if wanted else []

    def _known(self, draft: Draft) -> Draft:
        end = next((at for at, token in enumerate(draft) if token >= self._vocab_size), len(draft))
        return draft[:end]
