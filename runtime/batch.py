"""The input of one step: a ragged batch of new tokens, validated for a session; independent of engines."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megrez.runtime.errors import UsageError

Tokens = NDArray[np.int64]
Lengths = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """N new tokens of S sequences; create it with `Batch.of`.

    tokens: [N] ids, the sequences concatenated. slots: [S] distinct slots, one per sequence. starts: [S] cached
    lengths. counts: [S] new tokens per sequence, 1 or more. logits_index: [W] indices into the N tokens whose logits
    are returned. offsets: [S] where each sequence begins in `tokens`.
    """

    tokens: Tokens
    slots: Tokens
    starts: Lengths
    counts: Tokens
    logits_index: Tokens
    offsets: Tokens

    @classmethod
    def of(
        cls,
        tokens: ArrayLike,
        starts: ArrayLike,
        logits_index: ArrayLike,
        slots: ArrayLike | None = None,
        counts: ArrayLike | None = None,
        *,
        max_slots: int,
        capacity: int,
    ) -> "Batch":
        """The arguments of `Session.step`, for a session with `max_slots` slots of `capacity` tokens each.

        Raises UsageError if they are inconsistent or do not fit the session.
        """
        ids, wanted = _flat(tokens), _flat(logits_index)
        first = np.asarray(starts, np.int32).reshape(-1)
        count = len(first)
        if count == 0:
            raise UsageError("the step has no sequences: give at least one sequence and its tokens")
        named = np.arange(count) if slots is None else _flat(slots)
        lengths = _even(len(ids), count) if counts is None else _flat(counts)
        if not len(named) == len(lengths) == count:
            raise UsageError(
                f"{count} starts, {len(named)} slots and {len(lengths)} counts were given: give one of each for every "
                "sequence"
            )
        _check_slots(named, max_slots)
        _check_counts(named, lengths, len(ids))
        check_capacity(first, lengths, capacity)
        _check_index(wanted, len(ids))
        return cls(
            tokens=ids,
            slots=named,
            starts=first,
            counts=lengths,
            logits_index=wanted,
            offsets=np.cumsum(lengths) - lengths,
        )

    @property
    def owners(self) -> Tokens:
        """[W] the sequence that each token of `logits_index` belongs to."""
        return np.searchsorted(self.offsets, self.logits_index, side="right") - 1

    @property
    def columns(self) -> Tokens:
        """[W] the position of each token of `logits_index` among the new tokens of its sequence."""
        return self.logits_index - self.offsets[self.owners]

    def tokens_of(self, sequence: int) -> Tokens:
        """The new ids of one sequence, [counts[sequence]]."""
        start = int(self.offsets[sequence])
        return self.tokens[start : start + int(self.counts[sequence])]


def check_capacity(starts: Lengths, counts: Tokens, capacity: int) -> None:
    """Raise UsageError if `starts` [S] cached plus `counts` [S] new tokens exceed the capacity."""
    cached = starts.tolist()
    if min(cached) < 0:
        raise UsageError(f"a sequence starts at {min(cached)}: a start is the number of cached tokens, 0 or more")
    ends = [start + count for start, count in zip(cached, counts.tolist(), strict=True)]
    if max(ends) > capacity:
        longest = ends.index(max(ends))
        raise UsageError(
            f"{starts[longest]} cached and {counts[longest]} new tokens do not fit the context of {capacity}: "
            "shorten the prompt or compile with a larger --context"
        )


def check_copy(source: int, target: int, length: int, *, max_slots: int, capacity: int) -> None:
    """Raise UsageError if a slot or the length is out of range for `max_slots` slots of `capacity` tokens."""
    _check_range(np.array([source, target]), max_slots)
    if not 0 <= length <= capacity:
        raise UsageError(
            f"a copy of {length} tokens was requested, a slot holds 0 to {capacity}: choose a length in that range"
        )


def _flat(values: ArrayLike) -> Tokens:
    return np.asarray(values, np.int64).reshape(-1)


def _even(tokens: int, sequences: int) -> Tokens:
    if tokens % sequences:
        raise UsageError(f"{tokens} tokens do not divide among {sequences} sequences: give the count of each")
    return np.full(sequences, tokens // sequences)


def _check_slots(slots: Tokens, max_slots: int) -> None:
    _check_range(slots, max_slots)
    if len(set(slots.tolist())) < len(slots):
        named, times = np.unique(slots, return_counts=True)
        raise UsageError(f"slot {named[times.argmax()]} appears twice in one step: give it all its tokens at once")


def _check_range(slots: Tokens, max_slots: int) -> None:
    if outside := [slot for slot in slots.tolist() if not 0 <= slot < max_slots]:
        raise UsageError(
            f"slot {outside[0]} was requested, the session has slots 0 to {max_slots - 1}: use one of these or open "
            "the bundle with more slots"
        )


def _check_counts(slots: Tokens, counts: Tokens, tokens: int) -> None:
    every = counts.tolist()
    if min(every) < 1:
        empty = next(at for at, count in enumerate(every) if count < 1)
        raise UsageError(f"slot {slots[empty]} gets {counts[empty]} new tokens: give it at least one or leave it out")
    if sum(every) != tokens:
        raise UsageError(f"{tokens} tokens were given, the counts add up to {sum(every)}: make the two equal")


def _check_index(index: Tokens, tokens: int) -> None:
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < tokens:
        outside = index[(index < 0) | (index >= tokens)]
        raise UsageError(
            f"logits of token {outside[0]} were requested, the step has tokens 0 to {tokens - 1}: index one of these"
        )
