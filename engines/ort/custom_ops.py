"""Registers our own CPU kernels (engines/ort/kernels/); independent of graphs.

Some replace ONNX Runtime's; attention over float16 and int8 KV caches is an operator of ours, and so are functions of
the graph that ONNX Runtime inlines without them: SwiGLU, MeansMatMulNBits, DecoderLayer. They are compiled when
the package is installed, if there is a C compiler, for AVX2, AVX-VNNI, AVX-512 with VNNI and AMX: the processor's best
is chosen at run time, and products have the same results with all, to the bit. MatMulNBits sums the same integers as
ONNX Runtime's and reads the weights in the mapped file, or in a copy in huge pages (kernels/huge_pages.h). It rounds
its inputs to int8 (accuracy_level 4); a graph with a higher accuracy level is rejected. Attention over float16 and int8
caches has portable C too, for processors without AVX2.
"""

import ctypes
import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from megrez.runtime.errors import EngineError, UsageError, first_line

# Which kernels replace ONNX Runtime's. 0: none; unset or 1: ours, where the processor has AVX2; avx2, vnni, avx512: the
# same, with no better instructions than these; attention: the same as 1, but with ONNX Runtime's MatMulNBits; portable:
# none, and attention over other caches than float32 in portable C. The first registration in a process decides.
SETTING = "MEGREZ_KERNELS"
SETTINGS = ("0", "1", "attention", "avx2", "vnni", "avx512", "portable")
# By megrez_instructions of kernels/products.h.
INSTRUCTIONS = (None, "AVX2", "AVX2 and VNNI", "AVX-512 and VNNI", "AMX and AVX-512 VNNI")


def register(options: Any, *, cache: str = "float32") -> bool:
    """Register our kernels in onnxruntime.SessionOptions; returns whether they replace ONNX Runtime's.

    For graphs in float32 only, with KV caches of data type `cache`: others would be rejected. Raises UsageError for an
    invalid setting, EngineError if the library was compiled for another machine, or not at all and `cache` needs it.
    """
    setting = os.environ.get(SETTING, "")
    if setting not in ("", *SETTINGS):
        raise UsageError(
            f"{SETTING} is {setting!r}, the valid values are {', '.join(SETTINGS[:-1])} and {SETTINGS[-1]}: "
            "set one of these or unset it"
        )
    needed = cache != "float32"
    library = find_library()
    if library is None and needed:
        raise EngineError(
            f"the bundle has a KV cache in {cache}, which needs our kernels, and they were not compiled when "
            "megrez-compile was installed: reinstall it where a C compiler is, or compile the bundle with --kv f32"
        )
    replaces = library is not None and setting != "0" and bool(_load(library).megrez_replaces())
    if replaces or needed:
        options.register_custom_ops_library(str(library))
    return replaces


def leave_padding_out(graph: Path) -> bool:
    """Whether our kernels, once registered, compute nothing for padding in this graph's layers but the last one."""
    return os.environ.get(SETTING) != "attention" and b"DecoderLayer" in graph.read_bytes()


def find_library() -> Path | None:
    """The compiled kernels, in the same folder as this file; None if they were not compiled."""
    candidates = (Path(__file__).with_name(f"_kernels{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next(filter(Path.exists, candidates), None)


def instructions(library: Path) -> str | None:
    """Which instructions the kernels' products use on this processor; None if it cannot run them."""
    return INSTRUCTIONS[_load(library).megrez_kernels()]


def _load(library: Path) -> Any:
    """The library's functions; raises EngineError if it cannot be loaded, or is another version's."""
    try:
        loaded = ctypes.CDLL(str(library))
        for name in ("megrez_kernels", "megrez_replaces"):
            getattr(loaded, name)
    except (OSError, AttributeError) as error:
        raise EngineError(
            f"{library} was compiled for another machine: {first_line(error)}: reinstall megrez-compile, "
            f"or set {SETTING}=0"
        ) from error
    return loaded
