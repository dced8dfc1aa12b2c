"""Our runtime at given numbers of cached tokens: run by benchmarks/kv_cache.py.

python kv_megrez.py BUNDLE THREADS LENGTHS STEPS, then as turns.py says; LENGTHS is such as 4000,16000

The caches are filled with random bytes in place of a prompt: a decode step takes as long whatever they hold. A step
before those that are timed touches what other runtimes' turns left cold.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
from turns import Line, resident_bytes, serve

from megrez.runtime.huge_pages import restart_with_huge_pages


def opened(prompt: list[int]) -> tuple[Line, Callable[[], Line]]:
    from importlib.metadata import version

    from megrez.engines.ort.bound import OrtSession
    from megrez.runtime.bundle import open_bundle
    from megrez.runtime.engines import open_session

    path, threads, lengths, steps = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(","), int(sys.argv[4])
    bundle = open_bundle(path)
    session = open_session(bundle, threads=threads)
    assert isinstance(session, OrtSession)
    session.step(prompt[:1], [0], [0])
    before = resident_bytes()
    _fill(session, max(map(int, lengths)))
    cache = resident_bytes() - before

    def generate() -> Line:
        found = {}
        for length in map(int, lengths):
            session.step([0], [length], [0])
            start = time.perf_counter()
            for at in range(1, steps + 1):
                session.step([at], [length + at], [0])
            found[f"decode_{length}"] = steps / (time.perf_counter() - start)
        return found

    about = {"version": version("megrez-compile"), "cache_bytes": cache}
    return about | {"cache_bytes_per_token": bundle.manifest.kv_cache.bytes_per_token}, generate


def _fill(session: object, tokens: int) -> None:
    random = np.random.default_rng(0)
    for buffer in session._caches.buffers.values():  # type: ignore[attr-defined]
        array = buffer.read()
        shape = (*array.shape[:2], tokens, array.shape[3])
        if array.dtype == np.int8:
            array[:, :, :tokens] = random.integers(-127, 128, shape, np.int8)
        else:
            array[:, :, :tokens] = random.random(shape, np.float32) / 50


if __name__ == "__main__":
    restart_with_huge_pages()
    serve(opened)
