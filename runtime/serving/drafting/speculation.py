"""Decides what is drafted in each step, from measured costs and acceptance; the engine verifies it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from megrez.runtime.serving.drafting.drafter import Draft, Drafter, Wanted
from megrez.runtime.serving.drafting.estimates import Acceptance, StepCosts
from megrez.runtime.serving.drafting.lengths import best_lengths, even_lengths
from megrez.runtime.serving.request import Generation

MOST_DRAFTED = 15
# Drafts that do not pay are tried again after this many steps, later after twice as many each time.
FIRST_RETRY, LAST_RETRY = 32, 512
RETRY_LENGTH = 3
# After this many steps with drafts comes one without: what those save is compared with what it costs.
PLAIN_EVERY = 64

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Totals:
    """Since the engine was made. drafts: of one or more tokens each. drafted, accepted: tokens."""

    drafts: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(slots=True, kw_only=True)
class _Sequence:
    """kinds: of the tokens that can be drafted now. verified: how many of its draft were.

    declined: steps since its last draft in which it could have had one. retry: after so many it gets one.
    """

    acceptance: Acceptance
    kinds: Sequence[int] = ()
    verified: int = 0
    declined: int = 0
    retry: int = FIRST_RETRY


class Speculation:
    """To be used from the engine's thread.

    is_adaptive: draft as many tokens as pay; otherwise as many as possible.
    """

    def __init__(self, drafter: Drafter, *, is_adaptive: bool = True) -> None:
        self.totals = Totals()
        self._drafter: Drafter | None = drafter
        self._is_adaptive = is_adaptive
        self._costs = StepCosts()
        self._kinds = len(drafter.expected)
        # Sequences begin with what was seen in others, which matters for speed only.
        self._overall = Acceptance(drafter.expected.__getitem__, self._kinds, memory=200, weight=6)
        self._sequences: dict[int, _Sequence] = {}
        self._drafted_steps = 0

    def draft(self, running: Sequence[Generation]) -> list[Draft]:
        """For each decoding sequence, tokens that may follow; perhaps none. Its output limit is kept to."""
        nothing: list[Draft] = [[] for _ in running]
        if self._drafter is None or (self._is_adaptive and self._is_plain_due()):
            return nothing
        try:
            drafts = self._drafts(self._drafter, running)
        except Exception:
            log.exception("drafting failed: speculation is off from now on")
            self.close()
            return nothing
        self._note_drafts(running, drafts)
        return drafts

    def note_step(self, rows: int, seconds: float) -> None:
        """A step without prefill took this long."""
        self._costs.note(rows, seconds)

    def note_guess(self, one: Generation, *, accepted: bool) -> None:
        """Whether the next token of the sequence's draft was sampled too. Those after one that was not do not count."""
        assert one.slot is not None
        own = self._sequences[one.slot]
        kind = own.kinds[own.verified]
        own.acceptance.note(kind, accepted)
        self._overall.note(kind, accepted)
        self.totals.accepted += accepted
        one.accepted_tokens += accepted
        if own.verified == 0:
            own.retry = FIRST_RETRY if accepted else min(2 * own.retry, LAST_RETRY)
        own.verified += 1

    def release(self, slot: int) -> None:
        """The slot's sequence has ended."""
        self._sequences.pop(slot, None)
        if self._drafter is not None:
            self._drafter.release(slot)

    def close(self) -> None:
        """Draft nothing any more, and free the drafter; further calls do nothing."""
        if self._drafter is not None:
            self._drafter.close()
            self._drafter = None

    def _is_plain_due(self) -> bool:
        if not self._costs.known or self._drafted_steps >= PLAIN_EVERY:
            self._drafted_steps = 0
            return True
        return False

    def _note_drafts(self, running: Sequence[Generation], drafts: Sequence[Draft]) -> None:
        self._drafted_steps = self._drafted_steps + 1 if any(drafts) else 0
        for one, draft in zip(running, drafts, strict=True):
            if draft and one.slot is not None:
                self._sequences[one.slot].declined = 0
                one.drafted_tokens += len(draft)
                self.totals.drafts += 1
                self.totals.drafted += len(draft)

    def _drafts(self, drafter: Drafter, running: Sequence[Generation]) -> list[Draft]:
        states = [self._look(drafter, one) for one in running]
        if not any(state.kinds for state in states):
            return [[] for _ in running]
        lengths = self._lengths(drafter, states) if self._is_adaptive else even_lengths([len(s.kinds) for s in states])
        chosen = [(one, length) for one, length in zip(running, lengths, strict=True) if length]
        found = drafter.draft([_wanted(one, length) for one, length in chosen]) if chosen else []
        drafts = {one.slot: _permitted(one, draft) for (one, _), draft in zip(chosen, found, strict=True)}
        return [drafts.get(one.slot, []) for one in running]

    def _look(self, drafter: Drafter, one: Generation) -> _Sequence:
        assert one.slot is not None
        if one.slot not in self._sequences:
            own = Acceptance(self._overall.of, self._kinds, memory=30, weight=3)
            self._sequences[one.slot] = _Sequence(acceptance=own)
        found = self._sequences[one.slot]
        found.verified = 0
        room = min(MOST_DRAFTED, one.limit - one.output_tokens - 1)
        found.kinds = drafter.prospects(one.slot, one.ids, room) if room > 0 and one.output_tokens else ()
        return found

    def _lengths(self, drafter: Drafter, states: Sequence[_Sequence]) -> list[int]:
        lengths = best_lengths([_chances(one) for one in states], self._costs, drafting_s=drafter.seconds)
        for one, length in zip(states, lengths, strict=True):
            one.declined += bool(one.kinds) and not length
        if not any(lengths):
            due = [at for at, one in enumerate(states) if one.kinds and one.declined >= one.retry]
            for at in due[:1]:
                lengths[at] = min(RETRY_LENGTH, len(states[at].kinds))
        return lengths


def _chances(one: _Sequence) -> list[float]:
    found, chance = [], 1.0
    for kind in one.kinds:
        chance *= one.acceptance.of(kind)
        found.append(chance)
    return found


def _wanted(one: Generation, count: int) -> Wanted:
    assert one.slot is not None
    return Wanted(slot=one.slot, ids=one.ids, count=count)


def _permitted(one: Generation, draft: Draft) -> Draft:
    """The draft up to the first token that the sequence's grammar forbids."""
    if one.matcher is None or not draft:
        return draft
    try:
        return draft[: one.matcher.accepts(draft)]
    except Exception:  # sampling meets the same error, which is the request's own
        return []
