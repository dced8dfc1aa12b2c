"""ik_llama.cpp, through its C interface: run by benchmarks/speed.py with the peers' Python.

python peer_ik_llama.py FILE THREADS CONTEXT OUTPUT_TOKENS, then as turns.py says
"""

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ik_llama_cpp import _ctypes_api as api
from ik_llama_cpp._internals import IkContext, IkModel, make_batch_range
from turns import Line, serve, timed


def step(context: IkContext, tokens: list[int], start: int) -> int:
    """Evaluate `tokens` from position `start` on and return the likeliest next one."""
    batch = make_batch_range(tokens, pos_start=start)
    if context.decode(batch) != 0:
        raise RuntimeError("llama_decode failed")
    api.llama_batch_free(batch)
    return int(np.ctypeslib.as_array(context.get_logits(-1), (context.model.n_vocab,)).argmax())


def opened(prompt: list[int]) -> tuple[Line, Callable[[], Line]]:
    path, threads, length, output_tokens = sys.argv[1], *map(int, sys.argv[2:])
    context = IkContext(IkModel(path), n_ctx=length, n_threads=threads)

    def generate() -> Line:
        context.kv_cache_clear()
        written: list[int] = []

        def first() -> None:
            written.append(step(context, prompt, 0))

        def other() -> None:
            written.append(step(context, written[-1:], len(prompt) + len(written) - 1))

        return timed(len(prompt), output_tokens, first, other)

    return {"version": version("ik-llama-cpp-python"), "bytes": Path(path).stat().st_size}, generate


if __name__ == "__main__":
    serve(opened)
