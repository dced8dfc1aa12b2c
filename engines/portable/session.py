"""A bundle's portable graph on ONNX Runtime's CPU kernels; knows its inputs by name."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from megrez.engines.ort.bound import open_bound
from megrez.runtime.bundle import Bundle
from megrez.runtime.session import Lengths, Session


def open_session(bundle: Bundle, *, threads: int | None, slots: int = 1, capacity: int | None = None) -> Session:
    """See megrez.engines.ort.bound.open_bound. Attention costs by the capacity, whatever is cached.

    Further rewrites of ONNX Runtime would round the inputs of products whose weights alone are quantised.
    """
    return open_bound(bundle, _length_inputs, threads=threads, slots=slots, capacity=capacity, basic=True)


def _length_inputs(lengths: Lengths, width: int) -> dict[str, NDArray[Any]]:
    """See megrez.compile.export.trace."""
    return {"write_indices": lengths.astype(np.int64)}
