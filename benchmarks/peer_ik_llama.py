"""Speed of a GGUF in ik_llama.cpp, by its C interface: run by benchmarks/speed.py with the peers' Python.

python peer_ik_llama.py FILE THREADS CONTEXT OUTPUT_TOKENS REPEAT < prompt ids as JSON
"""

import json
import os
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ik_llama_cpp import _ctypes_api as api
from ik_llama_cpp._internals import IkContext, IkModel, make_batch_range


def step(context: IkContext, tokens: list[int], start: int) -> int:
    """Evaluate `tokens` from position `start` on and return the likeliest next one."""
    batch = make_batch_range(tokens, pos_start=start)
    if context.decode(batch) != 0:
        raise RuntimeError("llama_decode failed")
    api.llama_batch_free(batch)
    return int(np.ctypeslib.as_array(context.get_logits(-1), (context.model.n_vocab,)).argmax())


def main() -> None:
    path, threads, length, output_tokens, repeat = sys.argv[1], *map(int, sys.argv[2:])
    prompt = json.load(sys.stdin)
    output = os.dup(1)
    os.dup2(2, 1)  # the library writes to stdout
    context = IkContext(IkModel(path), n_ctx=length, n_threads=threads)
    prefill, decode = [], []
    for _ in range(1 + repeat):
        context.kv_cache_clear()
        start = time.perf_counter()
        token = step(context, prompt, 0)
        first = time.perf_counter()
        for position in range(len(prompt), len(prompt) + output_tokens - 1):
            token = step(context, [token], position)
        prefill.append(len(prompt) / (first - start))
        decode.append((output_tokens - 1) / (time.perf_counter() - first))
    figures = {
        "version": version("ik-llama-cpp-python"),
        "prefill_tokens_per_s": statistics.median(prefill[1:]),
        "decode_tokens_per_s": statistics.median(decode[1:]),
        "bytes": Path(path).stat().st_size,
    }
    os.write(output, json.dumps(figures).encode())


if __name__ == "__main__":
    main()
