"""One long prompt through our runtime: run by benchmarks/long_prompt.py, prints a line of JSON.

python long_megrez.py BUNDLE TOKENS CHUNK THREADS OUTPUT

The stated budget is the one of `megrez inspect`: the files, the KV cache and the process; what is resident is Linux's
count.
"""

import json
import sys
import time

import numpy as np
from turns import resident_bytes

from megrez.runtime.bundle import open_bundle
from megrez.runtime.engines import open_session
from megrez.runtime.huge_pages import restart_with_huge_pages
from megrez.runtime.memory import working_bytes


def measure(path: str, tokens: int, chunk: int, threads: int, output: int) -> dict[str, float]:
    bundle = open_bundle(path)
    session = open_session(bundle, threads=threads)
    prompt = np.random.default_rng(0).integers(session.vocab_size, size=tokens)
    session.step(prompt[:chunk], [0], [0])  # buffers of a chunk
    session.step(prompt[:1], [chunk], [0])
    before = resident_bytes()
    begun = time.perf_counter()
    for start in range(0, tokens, chunk):
        piece = prompt[start : start + chunk]
        session.step(piece, [start], [len(piece) - 1] if start + chunk >= tokens else [])
    prefill = tokens / (time.perf_counter() - begun)
    begun = time.perf_counter()
    for at in range(output):
        session.step([at], [tokens + at], [0])
    decode = output / (time.perf_counter() - begun)
    after = resident_bytes()
    cache = bundle.manifest.kv_cache.bytes_per_token * tokens
    shape = bundle.manifest.architecture
    working = working_bytes(shape.hidden_size, shape.intermediate_size)
    return {
        "prefill_tokens_per_s": prefill,
        "decode_tokens_per_s": decode,
        "cache_bytes": after - before,
        "stated_cache_bytes": cache,
        "resident_bytes": after + resident_bytes("RssFile"),
        "stated_bytes": sum(file.size for file in bundle.manifest.files) + cache + working,
    }


if __name__ == "__main__":
    restart_with_huge_pages()
    print(json.dumps(measure(sys.argv[1], *map(int, sys.argv[2:]))))
