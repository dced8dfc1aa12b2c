"""A session that reads hidden states computed before: fidelity needs no second model in memory; knows no layer."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


class HiddenSession:
    """A Session of one slot that returns the logits of hidden states [N, H], for their own tokens in their order."""

    slots = 1

    def __init__(self, hidden: Float32, head: Callable[[Float32], Float32], *, window: int, vocab_size: int) -> None:
        self.capacity, self.vocab_size = window, vocab_size
        self._hidden, self._head, self._window, self._start = hidden, head, window, -window

    def step(self, tokens: NDArray[np.int64], lengths: NDArray[np.int32], rows: NDArray[np.int64]) -> Float32:
        """See megrez.runtime.session.Session; an empty cache starts the next window."""
        if lengths[0] == 0:
            self._start += self._window
        at = self._start + int(lengths[0])
        return self._head(self._hidden[at : at + tokens.shape[1]][rows])

    def close(self) -> None:
        """It holds no resource."""
