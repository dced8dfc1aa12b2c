"""A bundle's graph of the `ort` dialect, with every rewrite ONNX Runtime has; knows its inputs by name."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from megrez.engines.ort.bound import open_bound
from megrez.runtime.bundle import Bundle
from megrez.runtime.session import Lengths, Session


def open_session(bundle: Bundle, *, threads: int | None, slots: int = 1, capacity: int | None = None) -> Session:
    """See megrez.engines.ort.bound.open_bound."""
    return open_bound(bundle, _length_inputs, threads=threads, slots=slots, capacity=capacity)


def _length_inputs(lengths: Lengths, width: int) -> dict[str, NDArray[Any]]:
    """See megrez.compile.passes.group_query_attention."""
    return {
        "seqlens_k": (lengths + (width - 1)).astype(np.int32),
        "total_sequence_length": np.array(lengths.max() + width, np.int32),
        "query_seqlens": np.full(len(lengths), width, np.int32),
    }
