"""Runs bundles: text in, text out. Knows no torch, no transformers, no onnx, and not how a bundle was made.

The names below are imported when they are used, so that `import megrez.runtime` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megrez.runtime.bundle import Bundle, open_bundle
    from megrez.runtime.completion import Completion, Piece
    from megrez.runtime.errors import MegrezError
    from megrez.runtime.model import Model
    from megrez.runtime.sampling import SamplingParams
    from megrez.runtime.serving.llm import LLM

_MODULES = {
    "Bundle": "bundle",
    "Completion": "completion",
    "LLM": "serving.llm",
    "MegrezError": "errors",
    "Model": "model",
    "Piece": "completion",
    "SamplingParams": "sampling",
    "open_bundle": "bundle",
}

__all__ = ["LLM", "Bundle", "Completion", "MegrezError", "Model", "Piece", "SamplingParams", "open_bundle"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
