"""Registers our own CPU kernels (engines/ort/kernels/) in place of ONNX Runtime's; independent of graphs.

They are compiled when the package is installed, if there is a C compiler. MatMulNBits sums the same integers as ONNX
Runtime's, reads the weights in the mapped file, and is memory-bound where ONNX Runtime's is compute-bound with AVX2.
On processors with VNNI, ONNX Runtime's kernels use it and stay: ours have not been compared with them there. Our
MatMulNBits rounds its inputs to int8 (accuracy_level 4); a graph with a higher accuracy level is rejected.
"""

import ctypes
import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from megrez.runtime.errors import EngineError, UsageError, first_line

# 0: never; 1: on every processor that can run them; attention: the same, but with ONNX Runtime's MatMulNBits; unset:
# without VNNI only. The first registration in a process decides.
SETTING = "MEGREZ_KERNELS"
_NEVER, _WHEREVER = "0", ("1", "attention")
_RUNS_BEST, _RUNS = 1, 2


def register(options: Any) -> bool:
    """Register our kernels in onnxruntime.SessionOptions; returns whether it did.

    For float32 graphs only: others would be rejected. Raises UsageError for an invalid setting, EngineError if the
    library was compiled for another machine.
    """
    setting = os.environ.get(SETTING, "")
    if setting not in ("", _NEVER, *_WHEREVER):
        raise UsageError(
            f"{SETTING} is {setting!r}, the valid values are 0, 1 and attention: set one of these or unset it"
        )
    library = None if setting == _NEVER else find_library()
    verdict = 0 if library is None else judge(library)
    if verdict != _RUNS_BEST and not (verdict == _RUNS and setting in _WHEREVER):
        return False
    options.register_custom_ops_library(str(library))
    return True


def find_library() -> Path | None:
    """The compiled kernels, in the same folder as this file; None if they were not compiled."""
    candidates = (Path(__file__).with_name(f"_kernels{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next(filter(Path.exists, candidates), None)


def judge(library: Path) -> int:
    """Whether this processor can run the kernels: 0 no; 1 yes; 2 yes, but it has VNNI: ONNX Runtime's are used."""
    try:
        return int(ctypes.CDLL(str(library)).megrez_kernels())
    except (OSError, AttributeError) as error:
        raise EngineError(
            f"{library} was compiled for another machine: {first_line(error)}: reinstall megrez-compile, "
            f"or set {SETTING}=0"
        ) from error
