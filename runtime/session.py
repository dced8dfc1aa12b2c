"""What the runtime asks of an engine, and a fake that keeps the promise; knows no engine."""

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megrez.runtime.errors import UsageError

Tokens = NDArray[np.int64]
Lengths = NDArray[np.int32]
Logits = NDArray[np.float32]


class Session(Protocol):
    """A model with its KV cache: `slots` rows that each hold up to `capacity` tokens, in buffers that never move."""

    @property
    def slots(self) -> int: ...

    @property
    def capacity(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def step(self, tokens: Tokens, lengths: Lengths, rows: Tokens) -> Logits:
        """Append T tokens to every slot and return logits for the positions asked for.

        tokens: [slots, T] ids; those of slot b are written to the cache at lengths[b] .. lengths[b] + T - 1.
        lengths: [slots] tokens already in each slot; what lies beyond them in the cache is never read.
        rows: [N] positions of tokens.reshape(-1) whose logits are wanted.
        Returns [N, vocab_size], valid until the next step.
        Raises UsageError when lengths + T exceeds the capacity, EngineError when the engine fails.
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


def check_room(lengths: Lengths, width: int, capacity: int) -> None:
    """Raise UsageError where `width` more tokens do not fit behind the longest of `lengths`."""
    length = int(lengths.max())
    if length + width > capacity:
        raise UsageError(
            f"{length} tokens are cached and {width} more were given, the context holds {capacity}: "
            "shorten the prompt or compile with a larger --context"
        )


class FakeSession:
    """A Session whose next token depends on all tokens before it: argmax(logits) = sum(context) % vocab_size."""

    def __init__(self, *, vocab_size: int, capacity: int = 64, slots: int = 1) -> None:
        self.vocab_size, self.capacity, self.slots = vocab_size, capacity, slots
        self.cache = np.zeros((slots, capacity), np.int64)

    def step(self, tokens: Tokens, lengths: Lengths, rows: Tokens) -> Logits:
        check_room(lengths, tokens.shape[1], self.capacity)
        logits = np.zeros((*tokens.shape, self.vocab_size), np.float32)
        for slot, (row, start) in enumerate(zip(tokens, lengths, strict=True)):
            self.cache[slot, start : start + len(row)] = row
            for t in range(len(row)):
                logits[slot, t, self.cache[slot, : start + t + 1].sum() % self.vocab_size] = 1.0
        return logits.reshape(-1, self.vocab_size)[rows]

    def close(self) -> None:
        self.cache = self.cache[:, :0]
