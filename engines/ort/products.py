"""Our own MatMulNBits (engines/ort/kernels/) in place of ONNX Runtime's on CPU; knows no graph.

It is compiled when the package is installed, if there is a C compiler, and sums the same integers. It reads weights
where they are mapped and is bound by the memory where ONNX Runtime's is bound by AVX2's arithmetic. Where the processor
has VNNI, ONNX Runtime's is faster with prompts, and stays.
"""

import ctypes
import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

# 0: never; 1: wherever the processor can; else where ONNX Runtime has nothing better.
SETTING = "MEGREZ_KERNELS"
_NEVER, _WHEREVER = "0", "1"


def register(options: Any) -> bool:
    """Let a session with these onnxruntime.SessionOptions multiply by our kernels; whether it will. float32 only."""
    library = find_library()
    if library is None or not _is_wanted(library):
        return False
    options.register_custom_ops_library(str(library))
    return True


def find_library() -> Path | None:
    """The compiled kernels, which lie beside this file; None where they were not compiled."""
    candidates = (Path(__file__).with_name(f"_kernels{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next(filter(Path.exists, candidates), None)


def _is_wanted(library: Path) -> bool:
    setting = os.environ.get(SETTING)
    runs, is_better = {0: (False, False), 1: (True, True), 2: (True, False)}[ctypes.CDLL(str(library)).megrez_kernels()]
    return runs and setting != _NEVER and (is_better or setting == _WHEREVER)
