"""A bundle's portable graph on ONNX Runtime's CPU kernels; knows its inputs by name."""

import numpy as np

from megrez.engines.ort.binding import Interface
from megrez.engines.ort.bound import open_on_cpu
from megrez.engines.ort.place import Array
from megrez.runtime.bundle import Bundle
from megrez.runtime.session import Lengths, Session


def open_session(bundle: Bundle, *, threads: int | None, slots: int = 1, capacity: int | None = None) -> Session:
    """See megrez.engines.ort.bound.open_on_cpu. The cost of attention grows with the capacity, not the cached length.

    More than basic optimisations would quantise the inputs of matrix products whose weights only are quantised.
    """
    interface = Interface(length_inputs=_length_inputs)
    return open_on_cpu(bundle, interface, threads=threads, slots=slots, capacity=capacity, basic=True)


def _length_inputs(starts: Lengths, counts: Lengths, capacity: int) -> dict[str, Array]:
    """See megrez.compile.graph.export.trace."""
    return {"write_indices": starts.astype(np.int64)}
