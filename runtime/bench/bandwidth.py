"""This machine's memory read bandwidth, the limit of a decoder that reads all its weights for every token."""

import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from megrez.runtime.manifest import Manifest

BYTES = 1 << 30
REPEATS = 7
# Each call reads 16 MiB, so that the overhead of a call is negligible.
PIECE = 1 << 22
# Engines that read their weights from this machine's memory through its CPU.
CPU_ENGINES = frozenset({"ort", "portable", "qdq"})
_TEXT_FILES = frozenset({"tokenizer.json", "chat_template.jinja"})


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

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _read(self, share: NDArray[np.int64]) -> float:
        return max((float(self._pieces[n].max()) for n in share), default=0.0)


def read_bandwidth(threads: int) -> float:
    """Bytes per second with which `threads` threads read memory; the best of seven readings."""
    reader = Reader(threads)
    try:
        return max(reader.bandwidth() for _ in range(REPEATS))
    finally:
        reader.close()


def weight_bytes(manifest: Manifest) -> int:
    """Bytes of weights that a decode step reads, as far as the manifest tells: all but the embedding's table.

    The table is read in full where the LM head is tied to it. It counts as the LM head's own if the two have different
    formats, or if the files hold more than the layers and one table.
    """
    shape, found = manifest.architecture, manifest.provenance.quantization
    # Bits of what is not quantised: a CPU computes in float32, whatever its KV cache is.
    wide = 32 if manifest.engine == "ort" or manifest.kv_cache.dtype == "float32" else 16
    layer_bits = _bits(found.projections if found else None, wide)
    table_bits = _bits(found.embedding if found else None, wide)
    stored = sum(file.size for file in manifest.files if file.path not in _TEXT_FILES)
    layers = shape.num_hidden_layers * shape.layer_weights
    table = shape.vocab_size * shape.hidden_size * table_bits // 8
    differ = found is not None and found.embedding != found.lm_head
    return stored - table if differ or stored - layers * layer_bits // 8 > 1.5 * table else stored


def _bits(stated: str | None, wide: int) -> int:
    """Of a weight's format, such as "int4 block 128"."""
    found = re.search(r"(\d+)", stated.split()[0]) if stated else None
    return int(found[1]) if found else wide
