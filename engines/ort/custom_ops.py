"""Our own operators (engines/ort/kernels/) in place of ONNX Runtime's on CPU; knows no graph.

They are compiled when the package is installed, if there is a C compiler. MatMulNBits sums the same integers as ONNX
Runtime's, reads weights where they are mapped, and is bound by the memory where ONNX Runtime's is bound by AVX2's
arithmetic. Where the processor has VNNI, ONNX Runtime's makes use of it and all of its own stay: the two have not been
compared there.
"""

import ctypes
import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from megrez.runtime.errors import EngineError, first_line

# 0: never; 1: wherever the processor can; else where ONNX Runtime has nothing better.
SETTING = "MEGREZ_KERNELS"
_NEVER, _WHEREVER = "0", "1"
# What the library says of this processor; 0 where it cannot run.
_RUNS_BEST, _RUNS = 1, 2


def register(options: Any) -> bool:
    """Let a session with these onnxruntime.SessionOptions run our kernels; whether it will.

    For graphs in float32 alone: others would be refused. Raises EngineError where the library is of another machine.
    """
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
    if setting == _NEVER:
        return False
    try:
        verdict = ctypes.CDLL(str(library)).megrez_kernels()
    except (OSError, AttributeError) as error:
        raise EngineError(
            f"{library} is not of this machine: {first_line(error)}: install megrez-compile anew, or set {SETTING}=0"
        ) from error
    return verdict == _RUNS_BEST or (verdict == _RUNS and setting == _WHEREVER)
