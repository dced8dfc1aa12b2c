"""Work on arrays in parts, one thread per physical core; knows no algorithm.

numpy computes element by element in one thread, and OpenBLAS's threads wait busily between small products, so parts run
in threads of ours and each product in one of them.
"""

import ctypes
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from megrez.runtime.threads import default_threads

T = TypeVar("T")
Float32 = NDArray[np.float32]
# A thread computes a multiple of this many of a product's columns. Rows are not divided: BLAS sums the last ones in
# another order, and a row's product would depend on how many others there are.
COLUMNS = 16
# Symbols of OpenBLAS in numpy's wheels, and as Linux distributions build it.
OPENBLAS = "scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_", "openblas_{}_num_threads"


def in_parts(rows: int, step: int, work: Callable[[slice], T]) -> list[T]:
    """The results of `work` on slices of `step` rows of 0 to `rows`, in order."""
    parts = [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
    if len(parts) < 2:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(default_threads()) as pool:
        return list(pool.map(work, parts))


def multiply(a: Float32, b: Float32, out: Float32 | None = None) -> Float32:
    """a [M, K] @ b [K, N], in `out` if given."""
    product = np.empty((len(a), b.shape[1]), np.float32) if out is None else out

    def compute(part: slice) -> None:
        np.matmul(a, b[:, part], out=product[:, part])

    share = -(-b.shape[1] // (default_threads() * COLUMNS)) * COLUMNS
    in_parts(b.shape[1], max(COLUMNS, share), compute)
    return product


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """numpy's products in the thread that calls them; no change where numpy has no OpenBLAS."""
    threads = _openblas_threads()
    if threads is None:
        yield
        return
    get, set_threads = threads
    before = get()
    set_threads(1)
    try:
        yield
    finally:
        set_threads(before)


@functools.cache
def _openblas_threads() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """Functions that get and set the number of threads of the OpenBLAS that this process has loaded."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf-8").splitlines() if maps.exists() else []
    for path in sorted({line.split()[-1] for line in lines if "openblas" in line}):
        library = ctypes.CDLL(path)
        for name in OPENBLAS:
            if hasattr(library, name.format("get")):
                return library[name.format("get")], library[name.format("set")]
    return None
