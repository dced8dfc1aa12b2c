"""The backend of a target, from the table of engines."""

from megrez.compile.backends.backend import Backend
from megrez.compile.backends.onnxruntime import OnnxRuntime
from megrez.compile.backends.qnn import Qnn
from megrez.compile.backends.tensorrt import TensorRt
from megrez.engines.targets import Target

BACKENDS: dict[str, Backend] = {
    "ort": OnnxRuntime(),
    "ort-cuda": OnnxRuntime(),
    "portable": OnnxRuntime(),
    "tensorrt": TensorRt(),
    "qdq": Qnn(),
    "qnn": Qnn(),
}


def backend_of(target: Target) -> Backend:
    return BACKENDS[target.engine]
