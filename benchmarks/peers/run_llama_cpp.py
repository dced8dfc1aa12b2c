"""llama.cpp, through the C interface of llama-cpp-python: run by benchmarks/speed.py with its own Python.

python run_llama_cpp.py FILE THREADS CONTEXT OUTPUT_TOKENS STREAMS, then as turns.py says
python run_llama_cpp.py --quantize FROM TO TYPE: Q4_0 or Q8_0 by llama.cpp's own quantiser
"""

import ctypes
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import llama_cpp as api
import numpy as np
from turns import Line, prompts_of, serve, timed


def step(context: object, vocab_size: int, tokens: list[list[int]], start: int) -> list[list[int]]:
    """Evaluate each sequence's `tokens` from position `start` on, and return each one's likeliest next one."""
    batch = api.llama_batch_init(sum(map(len, tokens)), 0, 1)
    ends = []
    at = 0
    for sequence, own in enumerate(tokens):
        for offset, token in enumerate(own):
            batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, start + offset, 1
            batch.seq_id[at][0], batch.logits[at] = sequence, offset == len(own) - 1
            at += 1
        ends.append(at - 1)
    batch.n_tokens = at
    if api.llama_decode(context, batch) != 0:
        raise RuntimeError("llama_decode failed")
    api.llama_batch_free(batch)
    rows = (np.ctypeslib.as_array(api.llama_get_logits_ith(context, end), (vocab_size,)) for end in ends)
    return [[int(row.argmax())] for row in rows]


def opened(prompt: list[int]) -> tuple[Line, Callable[[], Line]]:
    path, threads, length, output_tokens, streams = sys.argv[1], *map(int, sys.argv[2:])
    api.llama_backend_init()
    model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
    params = api.llama_context_default_params()
    params.n_ctx, params.n_seq_max, params.n_batch = length * streams, streams, length * streams
    params.n_threads = params.n_threads_batch = threads
    context = api.llama_init_from_model(model, params)
    vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    prompts = prompts_of(prompt, streams)

    def generate() -> Line:
        api.llama_memory_clear(api.llama_get_memory(context), True)
        written = [[0]] * streams
        position = len(prompt)

        def first() -> None:
            nonlocal written
            written = step(context, vocab_size, prompts, 0)

        def other() -> None:
            nonlocal written, position
            written = step(context, vocab_size, written, position)
            position += 1

        return timed(len(prompt), output_tokens, first, other, streams=streams)

    return {"version": version("llama-cpp-python"), "bytes": Path(path).stat().st_size}, generate


def quantize(source: str, target: str, kind: str) -> None:
    params = api.llama_model_quantize_default_params()
    params.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if api.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) != 0:
        raise RuntimeError(f"llama_model_quantize failed on {source}")


if __name__ == "__main__":
    if sys.argv[1] == "--quantize":
        quantize(*sys.argv[2:])
    else:
        serve(opened)
