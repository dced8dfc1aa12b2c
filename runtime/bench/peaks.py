"""The limits of the device at hand, measured on the spot: memory bandwidth and arithmetic."""

import os
import subprocess
import sys
from dataclasses import dataclass

from megrez.runtime.bench.bandwidth import CPU_ENGINES, read_bandwidth
from megrez.runtime.engines import device_bandwidth
from megrez.runtime.errors import MegrezError

_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
# A product of this size takes a few hundredths of a second per core; the best of several counts.
_PRODUCT = """
import time
import numpy as np
n = 1536
a, b = np.ones((n, n), np.float32), np.ones((n, n), np.float32)
best = float("inf")
for _ in range(6):
    started = time.perf_counter()
    a @ b
    best = min(best, time.perf_counter() - started)
print(2 * n**3 / best)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """None for what was not measured. flops_per_s: of float32 matrix products by numpy, on CPUs only; engines that
    multiply in 8 or 16 bits can exceed it.
    """

    read_bytes_per_s: float | None = None
    flops_per_s: float | None = None


def measure_peaks(engine: str, threads: int) -> Peaks:
    """Of the device that `engine` runs on; nothing of NPUs, and of a GPU that cannot be measured."""
    if engine in CPU_ENGINES:
        return Peaks(read_bytes_per_s=read_bandwidth(threads), flops_per_s=product_rate(threads))
    try:
        return Peaks(read_bytes_per_s=device_bandwidth(engine))
    except MegrezError:
        return Peaks()


def product_rate(threads: int) -> float | None:
    """FLOP/s of numpy's float32 matrix product. In a process of its own: its BLAS reads the number of threads once."""
    environment = {**os.environ, **dict.fromkeys(_BLAS_THREADS, str(threads))}
    done = subprocess.run([sys.executable, "-c", _PRODUCT], capture_output=True, text=True, env=environment)
    return float(done.stdout) if done.returncode == 0 else None
