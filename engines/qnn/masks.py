"""What may attend to what: the host tells a static graph by masks; knows no codes."""

import numpy as np
from numpy.typing import NDArray


def visible(length: int, new: int, capacity: int, window: int | None = None) -> NDArray[np.bool_]:
    """bool [new, capacity + new]: the cache's slots, of which `length` are filled, then the new tokens.

    A position sees itself and what came before it, with a window the last so many of these only.
    """
    slots = np.arange(capacity)
    # A slot that is not filled lies, for every query, in the future.
    positions = np.concatenate([np.where(slots < length, slots, length + new), length + np.arange(new)])
    queries = length + np.arange(new)[:, None]
    seen: NDArray[np.bool_] = positions <= queries
    return seen if window is None else seen & (positions > queries - window)
