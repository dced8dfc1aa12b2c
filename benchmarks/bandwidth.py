"""This machine's memory read bandwidth: the limit of a decoder that reads all its weights for every token."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

BYTES = 1 << 30
REPEATS = 7
# Each call reads 16 MiB, so that the overhead of a call is negligible.
PIECE = 1 << 22


class Reader:
    """Reads a gibibyte, much larger than any cache, with several threads."""

    def __init__(self, threads: int) -> None:
        self._pieces = np.ones(BYTES // 4, np.float32).reshape(-1, PIECE)
        self._shares = np.array_split(np.arange(len(self._pieces)), threads)
        self._pool = ThreadPoolExecutor(threads)

    def bandwidth(self) -> float:
        """Bytes per second of one reading."""
        start = time.perf_counter()
        list(self._pool.map(self._read, self._shares))
        return self._pieces.nbytes / (time.perf_counter() - start)

    def bandwidth_now(self) -> float:
        """Bytes per second, the median of three readings: a tenth of a second."""
        return statistics.median(self.bandwidth() for _ in range(3))

    def _read(self, share: np.ndarray) -> float:
        return max(float(self._pieces[n].max()) for n in share)


def read_bandwidth(threads: int) -> float:
    """Bytes per second with which `threads` threads read memory; the best of seven readings."""
    reader = Reader(threads)
    return max(reader.bandwidth() for _ in range(REPEATS))


if __name__ == "__main__":
    for count in (1, 2):
        print(f"{count} threads: {read_bandwidth(count) / 1e9:.1f} GB/s")
