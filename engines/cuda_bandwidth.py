"""Memory bandwidth of the CUDA device at hand. Not run on a GPU yet; tests run it on a stub of CUDA's runtime."""

import time
from collections.abc import Callable

from megrez.engines.cuda_runtime import Cuda

BYTES = 1 << 30
REPEATS = 10


def copy_bandwidth(extra: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes per second of copies within the device, reads plus writes; the best of ten. extra: installs cuda-bindings.

    Raises EngineError without a GPU, MissingExtraError.
    """
    cuda = Cuda(extra)
    source, to = (cuda("cudaMalloc", BYTES) for _ in range(2))
    kind = cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    best = float("inf")
    try:
        for _ in range(REPEATS):
            started = clock()
            cuda("cudaMemcpy", to, source, BYTES, kind)
            cuda("cudaDeviceSynchronize")
            best = min(best, clock() - started)
    finally:
        for address in (source, to):
            cuda("cudaFree", address)
    return 2 * BYTES / best
