"""A session over precomputed hidden states: measuring fidelity needs no second model in memory; knows no layer."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megrez.runtime.batch import Batch, check_copy

Float32 = NDArray[np.float32]


class HiddenSession:
    """A Session of one slot whose logits are those of hidden states [N, H]; the tokens must be theirs, in order."""

    slots = 1

    def __init__(self, hidden: Float32, head: Callable[[Float32], Float32], *, window: int, vocab_size: int) -> None:
        self.capacity, self.vocab_size = window, vocab_size
        self._hidden, self._head, self._window, self._start = hidden, head, window, -window

    def step(
        self,
        tokens: ArrayLike,
        starts: ArrayLike,
        logits_index: ArrayLike,
        *,
        slots: ArrayLike | None = None,
        counts: ArrayLike | None = None,
    ) -> Float32:
        """See megrez.runtime.session.Session; a start of 0 begins the next window."""
        batch = Batch.of(tokens, starts, logits_index, slots, counts, most=1, capacity=self.capacity)
        if batch.starts[0] == 0:
            self._start += self._window
        return self._head(self._hidden[self._start + int(batch.starts[0]) + batch.logits_index])

    def copy(self, source: int, target: int, length: int) -> None:
        """See megrez.runtime.session.Session. There is no other slot to copy to."""
        check_copy(source, target, length, most=1, capacity=self.capacity)

    def close(self) -> None:
        """It holds no resource."""
