"""Causal masks, which the host computes for static graphs; knows no quantisation."""

import numpy as np
from numpy.typing import NDArray


def visible(length: int, new: int, capacity: int, window: int | None = None) -> NDArray[np.bool_]:
    """bool [new, capacity + new]: the cache's positions, of which `length` are filled, then the new tokens.

    A token attends to itself and to earlier ones, with a sliding window to the last `window` of them only.
    """
    cached = np.arange(capacity)
    # An unfilled position lies in the future of every query.
    positions = np.concatenate([np.where(cached < length, cached, length + new), length + np.arange(new)])
    queries = length + np.arange(new)[:, None]
    causal: NDArray[np.bool_] = positions <= queries
    return causal if window is None else causal & (positions > queries - window)
