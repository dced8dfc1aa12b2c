"""Our own operators (engines/ort/kernels/) in place of ONNX Runtime's on CPU; knows no graph.

They are compiled when the package is installed, if there is a C compiler. MatMulNBits sums the same integers as ONNX
Runtime's, reads weights where they are mapped, and is bound by the memory where ONNX Runtime's is bound by AVX2's
arithmetic. Where the processor has VNNI, ONNX Runtime's makes use of it and all of its own stay: the two have not been
compared there. Our MatMulNBits rounds its inputs to int8 (accuracy_level 4); a graph that asks for more is refused.
"""

import ctypes
import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from megrez.runtime.errors import EngineError, UsageError, first_line

# 0: never; 1: wherever the processor can; attention: so too, but ONNX Runtime's MatMulNBits; unset: where ONNX Runtime
# has nothing better. A process keeps the first that it registers.
SETTING = "MEGREZ_KERNELS"
_NEVER, _WHEREVER = "0", ("1", "attention")
_RUNS_BEST, _RUNS = 1, 2


def register(options: Any) -> bool:
    """Let a session with these onnxruntime.SessionOptions run our kernels; whether it will.

    For graphs in float32 alone: others would be refused. Raises UsageError where the setting is none of its values,
    EngineError where the library is of another machine.
    """
    setting = os.environ.get(SETTING, "")
    if setting not in ("", _NEVER, *_WHEREVER):
        raise UsageError(f"{SETTING} is {setting!r}, its values are 0, 1 and attention: set one of these or none")
    library = None if setting == _NEVER else find_library()
    verdict = 0 if library is None else judge(library)
    if verdict != _RUNS_BEST and not (verdict == _RUNS and setting in _WHEREVER):
        return False
    options.register_custom_ops_library(str(library))
    return True


def find_library() -> Path | None:
    """The compiled kernels, which lie beside this file; None where they were not compiled."""
    candidates = (Path(__file__).with_name(f"_kernels{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next(filter(Path.exists, candidates), None)


def judge(library: Path) -> int:
    """0: this processor cannot run it; 1: it can; 2: it can, and ONNX Runtime has better for it."""
    try:
        return int(ctypes.CDLL(str(library)).megrez_kernels())
    except (OSError, AttributeError) as error:
        raise EngineError(
            f"{library} is not of this machine: {first_line(error)}: install megrez-compile anew, or set {SETTING}=0"
        ) from error
