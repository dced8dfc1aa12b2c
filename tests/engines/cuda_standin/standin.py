"""Builds the stand-in for CUDA's runtime and puts it under the real cuda.bindings, in a process of its own.

cuda.bindings.runtime calls CUDA through pointers that its module cyruntime takes, once, from a table in
cuda.bindings._internal.runtime. The functions of SIGNATURES are replaced there; all others still reach NVIDIA's own
runtime, which answers that there is no driver.
"""

import ctypes
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
TABLE = "cuda.bindings._internal.runtime"
# As cuda.bindings declares them, and the files beside this one define them.
SIGNATURES = {
    "cudaDeviceGetAttribute": "(int *, enum cudaDeviceAttr, int)",
    "cudaFree": "(void *)",
    "cudaFreeHost": "(void *)",
    "cudaGetDevice": "(int *)",
    "cudaGetDeviceCount": "(int *)",
    "cudaGraphDestroy": "(cudaGraph_t)",
    "cudaGraphExecDestroy": "(cudaGraphExec_t)",
    "cudaGraphInstantiate": "(cudaGraphExec_t *, cudaGraph_t, unsigned PY_LONG_LONG)",
    "cudaGraphLaunch": "(cudaGraphExec_t, cudaStream_t)",
    "cudaHostAlloc": "(void **, size_t, unsigned int)",
    "cudaLaunchHostFunc": "(cudaStream_t, cudaHostFn_t, void *)",
    "cudaMalloc": "(void **, size_t)",
    "cudaMemGetInfo": "(size_t *, size_t *)",
    "cudaMemcpy2DAsync": "(void *, size_t, void const *, size_t, size_t, size_t, enum cudaMemcpyKind, cudaStream_t)",
    "cudaMemcpyAsync": "(void *, void const *, size_t, enum cudaMemcpyKind, cudaStream_t)",
    "cudaMemset": "(void *, int, size_t)",
    "cudaStreamBeginCapture": "(cudaStream_t, enum cudaStreamCaptureMode)",
    "cudaStreamCreate": "(cudaStream_t *)",
    "cudaStreamDestroy": "(cudaStream_t)",
    "cudaStreamEndCapture": "(cudaStream_t, cudaGraph_t *)",
    "cudaStreamSynchronize": "(cudaStream_t)",
}


def compiler() -> str | None:
    """The C compiler at hand."""
    asked = os.environ.get("CC")
    return shutil.which(asked) if asked else next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def build(folder: Path) -> Path:
    library = folder / "libcudart_standin.so"
    found = compiler()
    assert found is not None, "whoever calls this checks for a compiler first"
    options = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-O1", "-shared", "-fPIC"]
    subprocess.run([found, *options, "-o", library, *sorted(HERE.glob("*.c"))], check=True)
    return library


class StandIn:
    """Each method acts on the one device of this process."""

    def __init__(self, library: Path) -> None:
        self._c = ctypes.CDLL(str(library))
        self._c.standin_reset.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t]
        self._c.standin_report.restype = ctypes.c_char_p
        self._c.standin_view.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._c.standin_view.restype = ctypes.c_void_p
        self._names = {name: name.encode() for name in SIGNATURES}

    def install(self) -> None:
        """Raises AssertionError where it is too late, or cuda.bindings declares a function otherwise."""
        assert "cuda.bindings.cyruntime" not in sys.modules, "cuda.bindings has taken the real functions already"
        table = importlib.import_module(TABLE).__pyx_capi__
        api = ctypes.pythonapi
        api.PyCapsule_GetName.argtypes, api.PyCapsule_GetName.restype = [ctypes.py_object], ctypes.c_char_p
        api.PyCapsule_SetPointer.argtypes = [ctypes.py_object, ctypes.c_void_p]
        for name, signature in SIGNATURES.items():
            entry = table[f"_{name}"]
            assert api.PyCapsule_GetName(entry) == f"cudaError_t {signature}".encode(), name
            api.PyCapsule_SetPointer(entry, ctypes.cast(getattr(self._c, name), ctypes.c_void_p))

    def reset(self, *, count: int = 1, capability: int = 89, total: int = 1 << 30, occupied: int = 0) -> None:
        """A new device: nothing is alive, was called or shall fail. occupied: bytes of `total` that others hold."""
        self._c.standin_reset(count, capability, total, occupied)

    def fail(self, function: str, status: int, *, first: int = 1, last: int = 0) -> None:
        """Let call `first` from now on, and those up to `last`, return `status`.

        700, an illegal address, loses the device: all later calls return it too.
        """
        self._c.standin_fail(self._names[function], first, max(first, last), status)

    def calls(self, function: str) -> int:
        return int(self._c.standin_calls(self._names[function]))

    def report(self) -> list[str]:
        """What is alive, and what was freed or destroyed that was not."""
        return sorted(self._c.standin_report().decode().splitlines())

    def view(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        """Device memory as an array; raises ValueError for what was never allocated, or beyond its end."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        found = self._c.standin_view(address, size)
        if found is None:
            raise ValueError(f"{size} bytes at {address} are not allocated")
        return np.frombuffer((ctypes.c_byte * size).from_address(found), dtype).reshape(shape)
