"""A bundle's portable graph on ONNX Runtime's CPU kernels; knows its inputs by name."""

import numpy as np

from megrez.engines.ort.binding import Interface
from megrez.engines.ort.bound import open_on_cpu
from megrez.engines.ort.place import Array
from megrez.runtime.bundle import Bundle
from megrez.runtime.session import Lengths, Session


def open_session(bundle: Bundle, *, threads: int | None, slots: int = 1, capacity: int | None = None) -> Session:
    """See megrez.engines.ort.bound.open_on_cpu. Attention costs by the capacity, whatever is cached.

    Further rewrites of ONNX Runtime would round the inputs of products whose weights alone are quantised.
    """
    interface = Interface(length_inputs=_length_inputs)
    return open_on_cpu(bundle, interface, threads=threads, slots=slots, capacity=capacity, basic=True)


def _length_inputs(lengths: Lengths, width: int, capacity: int) -> dict[str, Array]:
    """See megrez.compile.graph.export.trace."""
    return {"write_indices": lengths.astype(np.int64)}
