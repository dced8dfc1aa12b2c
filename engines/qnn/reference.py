"""The static graphs as they were before an NPU's compiler: every Q/DQ operator as written, on ONNX Runtime's CPU."""

import os

from megrez.engines.qnn.graphs import Array, BoundGraph, Graph
from megrez.engines.qnn.layout import read_layout
from megrez.engines.qnn.session import open_static
from megrez.runtime.bundle import Bundle
from megrez.runtime.errors import EngineError, MissingExtraError, first_line
from megrez.runtime.session import Session
from megrez.runtime.threads import default_threads

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def open_session(bundle: Bundle, *, threads: int | None, slots: int = 1, capacity: int | None = None) -> Session:
    """See megrez.engines.qnn.session.open_session. Nothing is rewritten: ONNX Runtime's own fusions round otherwise."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(needed_for="opening this bundle", library="onnxruntime", extra="cpu") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or default_threads()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3

    def open_graph(name: str, arrays: dict[str, Array]) -> Graph:
        path = bundle.path / f"{name}.onnx"
        try:
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            said = first_line(error)
            raise EngineError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {said}") from error
        return BoundGraph(session, arrays, name)

    return open_static(bundle, read_layout(bundle.path), open_graph, slots=slots, capacity=capacity)
