"""The reference for an NPU: the uncompiled static graphs, every Q/DQ operator as written, on ONNX Runtime's CPU."""

from megrez.engines.ort.library import load_library, open_model
from megrez.engines.qnn.graphs import Array, BoundGraph, Graph
from megrez.engines.qnn.layout import read_layout
from megrez.engines.qnn.session import open_static
from megrez.runtime.bundle import Bundle
from megrez.runtime.session import Session
from megrez.runtime.threads import default_threads


def open_session(bundle: Bundle, *, threads: int | None, slots: int = 1, capacity: int | None = None) -> Session:
    """See megrez.engines.qnn.session.open_session. Graph optimisations are off: they change rounding."""
    onnxruntime = load_library("cpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or default_threads()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL

    def open_graph(name: str, arrays: dict[str, Array]) -> Graph:
        session = open_model(onnxruntime, bundle.path / f"{name}.onnx", options, ["CPUExecutionProvider"])
        return BoundGraph(session, arrays, name)

    return open_static(bundle, read_layout(bundle.path), open_graph, slots=slots, capacity=capacity)
