"""The new tokens of one step, sequence after sequence, checked against what a session holds; knows no engine."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megrez.runtime.errors import UsageError

Tokens = NDArray[np.int64]
Lengths = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """New tokens of S sequences, N in all; make one with `Batch.of`.

    tokens: [N] ids, sequence after sequence. slots: [S] distinct slots, one for each sequence. starts: [S] cached
    lengths. counts: [S] new tokens of each sequence, 1 or more. logits_index: [W] which of the N tokens logits are
    wanted for. offsets: [S] where in `tokens` each sequence begins.
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
        most: int,
        capacity: int,
    ) -> "Batch":
        """What `Session.step` was given, for a session of `most` slots of `capacity` tokens each.

        Raises UsageError where it contradicts itself or what the session holds; nothing has run then.
        """
        ids, wanted = _flat(tokens), _flat(logits_index)
        first = np.asarray(starts, np.int32).reshape(-1)
        count = len(first)
        if count == 0:
            raise UsageError("a step of no sequences was asked for: give at least one sequence and its tokens")
        named = np.arange(count) if slots is None else _flat(slots)
        lengths = _even(len(ids), count) if counts is None else _flat(counts)
        if not len(named) == len(lengths) == count:
            raise UsageError(
                f"{count} starts, {len(named)} slots and {len(lengths)} counts were given: give one of each for every "
                "sequence"
            )
        _check_slots(named, most)
        _check_counts(named, lengths, len(ids))
        check_room(first, lengths, capacity)
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
        """[W] the sequence that each of the wanted tokens belongs to."""
        return np.searchsorted(self.offsets, self.logits_index, side="right") - 1

    @property
    def columns(self) -> Tokens:
        """[W] the position of each of the wanted tokens among the new tokens of its sequence."""
        return self.logits_index - self.offsets[self.owners]

    def tokens_of(self, sequence: int) -> Tokens:
        """[counts[sequence]] ids."""
        start = int(self.offsets[sequence])
        return self.tokens[start : start + int(self.counts[sequence])]


def check_room(starts: Lengths, counts: Tokens, capacity: int) -> None:
    """Raise UsageError where `counts` [S] more tokens do not fit behind `starts` [S] cached ones."""
    if (starts < 0).any():
        raise UsageError(f"a sequence starts at {starts.min()}: a start is the number of cached tokens, 0 or more")
    longest = int(np.argmax(starts + counts))
    if starts[longest] + counts[longest] > capacity:
        raise UsageError(
            f"{starts[longest]} tokens are cached and {counts[longest]} more were given, the context holds {capacity}: "
            "shorten the prompt or compile with a larger --context"
        )


def check_copy(source: int, target: int, length: int, *, most: int, capacity: int) -> None:
    """Raise UsageError for a copy between slots that a session of `most` slots of `capacity` tokens does not have."""
    _check_range(np.array([source, target]), most)
    if not 0 <= length <= capacity:
        raise UsageError(f"a copy of {length} tokens was asked for, a slot holds 0 to {capacity}: copy one of these")


def _flat(values: ArrayLike) -> Tokens:
    return np.asarray(values, np.int64).reshape(-1)


def _even(tokens: int, sequences: int) -> Tokens:
    if tokens % sequences:
        raise UsageError(f"{tokens} tokens do not divide among {sequences} sequences: give the count of each")
    return np.full(sequences, tokens // sequences)


def _check_slots(slots: Tokens, most: int) -> None:
    _check_range(slots, most)
    named, times = np.unique(slots, return_counts=True)
    if (times > 1).any():
        raise UsageError(f"slot {named[times.argmax()]} is named twice in one step: give it all its tokens at once")


def _check_range(slots: Tokens, most: int) -> None:
    if (outside := slots[(slots < 0) | (slots >= most)]).size:
        raise UsageError(
            f"slot {outside[0]} was asked for, the session has slots 0 to {most - 1}: name one of these or open the "
            "bundle with more slots"
        )


def _check_counts(slots: Tokens, counts: Tokens, tokens: int) -> None:
    if (empty := np.flatnonzero(counts < 1)).size:
        raise UsageError(
            f"slot {slots[empty[0]]} gets {counts[empty[0]]} new tokens: give it at least one or leave it out"
        )
    if counts.sum() != tokens:
        raise UsageError(f"{tokens} tokens were given, the counts add up to {counts.sum()}: give as many as these say")


def _check_index(index: Tokens, tokens: int) -> None:
    if (outside := index[(index < 0) | (index >= tokens)]).size:
        raise UsageError(
            f"logits of token {outside[0]} were asked for, the step has tokens 0 to {tokens - 1}: index one of these"
        )
