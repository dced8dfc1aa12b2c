"""How fast this machine reads memory: the ceiling of a decoder that reads all its weights for every token."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

BYTES = 1 << 30
REPEATS = 7
# Each call reads 16 MiB: far more than it costs to hand the next piece to a thread.
PIECE = 1 << 22


def read_bandwidth(threads: int) -> float:
    """Bytes per second with which `threads` threads read a gibibyte, much larger than any cache; the best of seven."""
    data = np.ones(BYTES // 4, np.float32)
    pieces = data.reshape(-1, PIECE)
    shares = np.array_split(np.arange(len(pieces)), threads)

    def read(share: np.ndarray) -> float:
        return max(float(pieces[n].max()) for n in share)

    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(REPEATS):
            start = time.perf_counter()
            list(pool.map(read, shares))
            best = min(best, time.perf_counter() - start)
    return data.nbytes / best


if __name__ == "__main__":
    for count in (1, 2):
        print(f"{count} threads: {read_bandwidth(count) / 1e9:.1f} GB/s")
