"""ik_llama.cpp, through its C interface: run by benchmarks/speed.py with its own Python.

python run_ik_llama.py FILE THREADS CONTEXT OUTPUT_TOKENS STREAMS [--repack], then as turns.py says

--repack reads the weights into memory in ik_llama.cpp's interleaved layout (its -rtr), in place of mapping the file.
"""

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ik_llama_cpp import _ctypes_api as api
from ik_llama_cpp._internals import IkContext, IkModel
from turns import Line, prompts_of, serve, timed


class Repacked(IkModel):
    """IkModel has no option for the layout."""

    def __init__(self, path: str) -> None:
        api.llama_backend_init()
        params = api.llama_model_default_params()
        params.use_mmap, params.repack_tensors, params.n_gpu_layers = False, True, 0
        self._model = api.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise RuntimeError(f"llama_model_load_from_file failed on {path}")
        self._vocab = api.llama_model_get_vocab(self._model)
        self.n_vocab = api.llama_vocab_n_tokens(self._vocab)


def step(context: IkContext, tokens: list[list[int]], start: int) -> list[list[int]]:
    """Evaluate each sequence's `tokens` from position `start` on, and return each one's likeliest next one."""
    batch = api.llama_batch_init(sum(map(len, tokens)), 0, 1)
    ends = []
    for sequence, own in enumerate(tokens):
        for offset, token in enumerate(own):
            at = batch.n_tokens
            batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, start + offset, 1
            batch.seq_id[at][0], batch.logits[at] = sequence, offset == len(own) - 1
            batch.n_tokens += 1
        ends.append(batch.n_tokens - 1)
    if context.decode(batch) != 0:
        raise RuntimeError("llama_decode failed")
    api.llama_batch_free(batch)
    vocab_size = context.model.n_vocab
    return [[int(np.ctypeslib.as_array(context.get_logits(at), (vocab_size,)).argmax())] for at in ends]


def opened(prompt: list[int]) -> tuple[Line, Callable[[], Line]]:
    path, threads, length, output_tokens, streams = sys.argv[1], *map(int, sys.argv[2:6])
    model = Repacked(path) if "--repack" in sys.argv else IkModel(path)
    context = IkContext(model, n_ctx=length * streams, n_threads=threads, n_seq_max=streams)
    prompts = prompts_of(prompt, streams)

    def generate() -> Line:
        context.kv_cache_clear()
        written = [[0]] * streams
        position = len(prompt)

        def first() -> None:
            nonlocal written
            written = step(context, prompts, 0)

        def other() -> None:
            nonlocal written, position
            written = step(context, written, position)
            position += 1

        return timed(len(prompt), output_tokens, first, other, streams=streams)

    return {"version": version("ik-llama-cpp-python"), "bytes": Path(path).stat().st_size}, generate


if __name__ == "__main__":
    serve(opened)
