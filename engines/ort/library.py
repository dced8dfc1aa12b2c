"""Imports onnxruntime and opens models with it; independent of models."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from megrez.runtime.errors import EngineError, MissingExtraError, first_line

ERRORS_ONLY = 3


def load_library(extra: str) -> ModuleType:
    """The package, without telemetry; raises MissingExtraError, which names `extra`."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        library = "onnxruntime-gpu" if extra == "cuda" else "onnxruntime"
        raise MissingExtraError(needed_for="opening this bundle", library=library, extra=extra) from error
    module: ModuleType = onnxruntime
    return module


def open_model(onnxruntime: ModuleType, path: Path, options: Any, providers: list[Any]) -> Any:
    """An InferenceSession on `providers` and no others; raises EngineError if the graph is rejected."""
    options.log_severity_level = ERRORS_ONLY
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=0)
    except Exception as error:
        reason = first_line(error)
        raise EngineError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {reason}") from error
