"""The interface between the runtime and the engines, and a fake implementation for tests."""

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megrez.runtime.batch import Batch, Lengths, Tokens, check_copy
from megrez.runtime.errors import UsageError

__all__ = ["FakeSession", "Lengths", "Logits", "Session", "Tokens", "choose_capacity", "choose_slots"]

Logits = NDArray[np.float32]


class Session(Protocol):
    """A model with its KV cache: `slots` sequences of up to `capacity` tokens each, in buffers that never move.

    A slot keeps its tokens between steps. A step uses the first `start` of them and drops the others: afterwards the
    slot holds start + count tokens.
    """

    @property
    def slots(self) -> int: ...

    @property
    def capacity(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def step(
        self,
        tokens: ArrayLike,
        starts: ArrayLike,
        logits_index: ArrayLike,
        *,
        slots: ArrayLike | None = None,
        counts: ArrayLike | None = None,
    ) -> Logits:
        """Append new tokens to some of the slots and return the logits of the tokens in `logits_index`.

        Prefill and decode may be mixed: the engine pads or splits the step. Other slots are unchanged, and cost
        nothing.

        tokens: [N] ids, the sequences concatenated; an array [S, T] is flattened.
        starts: [S] cached tokens of each sequence; the new ones follow them.
        logits_index: [W] indices into the N tokens whose logits are returned, in any order; may be empty.
        slots: [S] the distinct slots of the sequences, by default 0 .. S - 1.
        counts: [S] new tokens of each sequence, 1 or more, by default N / S.
        Returns [W, vocab_size], valid until the next step.
        Raises UsageError before anything runs if these are inconsistent or do not fit the slots (see
        megrez.runtime.batch), EngineError if the engine fails.
        """
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` cached tokens of slot `source` to slot `target`, which then holds these only.

        Raises UsageError for a slot or length out of range, EngineError if the engine fails.
        """
        ...

    def close(self) -> None:
        """Free the buffers; the session cannot be used afterwards. Further calls do nothing."""
        ...


def choose_capacity(requested: int | None, longest: int, bundle: Path) -> int:
    """Tokens per slot: `requested`, by default the bundle's context length, above which it is a UsageError."""
    if requested is not None and not 1 <= requested <= longest:
        raise UsageError(
            f"a context of {requested} tokens was requested, {bundle} allows 1 to {longest}: "
            "choose one of these or compile with a larger --context"
        )
    return longest if requested is None else requested


def choose_slots(requested: int) -> int:
    """`requested`; UsageError if it is less than 1."""
    if requested < 1:
        raise UsageError(f"{requested} slots were requested: choose 1 or more")
    return requested


class FakeSession:
    """A Session whose next token depends on all tokens before it: argmax(logits) = sum(context) % vocab_size."""

    def __init__(self, *, vocab_size: int, capacity: int = 64, slots: int = 1) -> None:
        self.vocab_size, self.capacity, self.slots = vocab_size, capacity, slots
        self.cache = np.zeros((slots, capacity), np.int64)

    def step(
        self,
        tokens: ArrayLike,
        starts: ArrayLike,
        logits_index: ArrayLike,
        *,
        slots: ArrayLike | None = None,
        counts: ArrayLike | None = None,
    ) -> Logits:
        batch = Batch.of(tokens, starts, logits_index, slots, counts, max_slots=self.slots, capacity=self.capacity)
        ends = batch.starts + batch.counts
        for sequence, slot in enumerate(batch.slots):
            self.cache[slot, batch.starts[sequence] : ends[sequence]] = batch.tokens_of(sequence)
        logits = np.zeros((len(batch.logits_index), self.vocab_size), np.float32)
        for row, (sequence, column) in enumerate(zip(batch.owners, batch.columns, strict=True)):
            context = self.cache[batch.slots[sequence], : batch.starts[sequence] + column + 1]
            logits[row, context.sum() % self.vocab_size] = 1.0
        return logits

    def copy(self, source: int, target: int, length: int) -> None:
        check_copy(source, target, length, max_slots=self.slots, capacity=self.capacity)
        self.cache[target, :length] = self.cache[source, :length]

    def close(self) -> None:
        self.cache = self.cache[:, :0]
