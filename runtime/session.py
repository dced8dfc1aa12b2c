"""What the runtime asks of an engine, and a fake that keeps the promise; knows no engine."""

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

    A slot holds the tokens that a step or a copy left in it, until the next one names it. What a slot holds beyond a
    step's start is never read, and gone after the step: the slot then holds start + count tokens.
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
        """Append new tokens to some of the slots and return logits for the tokens asked for.

        Prompts and decoding sequences may be mixed: the engine pads or splits the step. A slot that is not named is
        left as it is, and costs nothing.

        tokens: [N] ids, all of one sequence's, then the next one's; an array [S, T] is flattened.
        starts: [S] tokens of each sequence that its slot holds already; the new ones are cached behind them.
        logits_index: [W] which of the N tokens logits are wanted for, in any order; may be empty.
        slots: [S] the distinct slots of the sequences, by default 0 .. S - 1.
        counts: [S] new tokens of each sequence, 1 or more, by default N / S.
        Returns [W, vocab_size], valid until the next step.
        Raises UsageError before anything runs where these contradict each other or do not fit the slots (see
        megrez.runtime.batch), EngineError when the engine fails.
        """
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Let slot `target` hold the first `length` tokens of slot `source`, which keeps its own.

        Raises UsageError for a slot or a length that the session does not have, EngineError when the engine fails.
        """
        ...

    def close(self) -> None:
        """Free the buffers; the session cannot be used afterwards. Closing twice is closing once."""
        ...


def choose_capacity(asked: int | None, longest: int, bundle: Path) -> int:
    """The tokens to make room for: `asked`, or the bundle's whole context; UsageError where that does not hold it."""
    if asked is not None and not 1 <= asked <= longest:
        raise UsageError(
            f"room for {asked} tokens was asked for, the context of {bundle} takes 1 to {longest}: "
            "ask for one of these or compile with a larger --context"
        )
    return longest if asked is None else asked


def choose_slots(asked: int) -> int:
    """`asked`; UsageError where that is no slot at all."""
    if asked < 1:
        raise UsageError(f"{asked} sequences at once were asked for: ask for at least 1")
    return asked


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
        batch = Batch.of(tokens, starts, logits_index, slots, counts, most=self.slots, capacity=self.capacity)
        ends = batch.starts + batch.counts
        for sequence, slot in enumerate(batch.slots):
            self.cache[slot, batch.starts[sequence] : ends[sequence]] = batch.tokens_of(sequence)
        logits = np.zeros((len(batch.logits_index), self.vocab_size), np.float32)
        for row, (sequence, column) in enumerate(zip(batch.owners, batch.columns, strict=True)):
            context = self.cache[batch.slots[sequence], : batch.starts[sequence] + column + 1]
            logits[row, context.sum() % self.vocab_size] = 1.0
        return logits

    def copy(self, source: int, target: int, length: int) -> None:
        check_copy(source, target, length, most=self.slots, capacity=self.capacity)
        self.cache[target, :length] = self.cache[source, :length]

    def close(self) -> None:
        self.cache = self.cache[:, :0]
