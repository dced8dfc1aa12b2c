"""A graph of the `ort` dialect on CPU, with all of ONNX Runtime's optimisations; knows its inputs by name."""

import numpy as np

from megrez.engines.ort.binding import Interface
from megrez.engines.ort.bound import open_on_cpu
from megrez.engines.ort.place import Array
from megrez.runtime.bundle import Bundle
from megrez.runtime.session import Lengths, Session


def open_session(bundle: Bundle, *, threads: int | None, slots: int = 1, capacity: int | None = None) -> Session:
    """See megrez.engines.ort.bound.open_on_cpu."""
    interface = Interface(length_inputs=_length_inputs, padded=True)
    return open_on_cpu(bundle, interface, threads=threads, slots=slots, capacity=capacity, own_kernels=True)


def _length_inputs(starts: Lengths, counts: Lengths, capacity: int) -> dict[str, Array]:
    """See megrez.compile.graph.passes.group_query_attention."""
    lengths = (starts + counts).astype(np.int32)
    return {
        "seqlens_k": lengths - 1,
        "total_sequence_length": np.array(lengths.max(), np.int32),
        "query_seqlens": counts.astype(np.int32),
    }
