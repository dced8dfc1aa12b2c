"""ik_llama.cpp with a q8_0 KV cache and flash attention: run by benchmarks/kv_cache.py and long_prompt.py.

PEERS-PYTHON kv_ik_llama.py FILE THREADS LENGTHS STEPS, then as turns.py says; LENGTHS is such as 4000,16000

Each length has a context of its own, into which a prompt of that length is read first.
"""

import ctypes
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
from ik_llama_cpp import _ctypes_api as api
from ik_llama_cpp._internals import IkContext, IkModel
from turns import Line, resident_bytes, serve

Q8_0 = 8  # GGML_TYPE_Q8_0
# Not among the wrapper's functions: context, sequence, first position, position after the last (-1: the end).
_remove = api._lib.llama_kv_cache_seq_rm
_remove.argtypes, _remove.restype = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32], ctypes.c_bool


class Quantised(IkContext):
    """IkContext has no option for the cache's types."""

    def __init__(self, model: IkModel, context: int, threads: int) -> None:
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = context, context, 1
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = Q8_0
        params.flash_attn = True
        self._ctx = api.llama_init_from_model(model.model, params)
        if not self._ctx:
            raise RuntimeError("llama_init_from_model failed")
        self._model = model
        self._n_ubatch = api.llama_n_ubatch(self._ctx)

    def read(self, tokens: list[int], start: int) -> int:
        """Evaluate `tokens` from position `start` on; returns the likeliest next one."""
        batch = api.llama_batch_init(len(tokens), 0, 1)
        for at, token in enumerate(tokens):
            batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, start + at, 1
            batch.seq_id[at][0], batch.logits[at] = 0, at + 1 == len(tokens)
        batch.n_tokens = len(tokens)
        if self.decode(batch) != 0:
            raise RuntimeError("llama_decode failed")
        api.llama_batch_free(batch)
        logits = np.ctypeslib.as_array(self.get_logits(len(tokens) - 1), (self.model.n_vocab,))
        return int(logits.argmax())

    def forget(self, start: int) -> None:
        """Remove the tokens from position `start` on."""
        _remove(self.ctx, 0, start, -1)


def opened(prompt: list[int]) -> tuple[Line, Callable[[], Line]]:
    path, threads, lengths, steps = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(","), int(sys.argv[4])
    model = IkModel(path)
    before = resident_bytes()
    contexts = {int(length): Quantised(model, int(length) + 2 * steps, threads) for length in lengths}
    prefill = {}
    for length, context in contexts.items():
        start = time.perf_counter()
        context.read((prompt * (length // len(prompt) + 1))[:length], 0)
        prefill[f"prefill_{length}"] = length / (time.perf_counter() - start)

    def generate() -> Line:
        found = {}
        for length, context in contexts.items():
            start = time.perf_counter()
            for at in range(steps):
                context.read([at], length + at)
            found[f"decode_{length}"] = steps / (time.perf_counter() - start)
            context.forget(length)
        return found

    about = {"version": version("ik-llama-cpp-python"), "cache_bytes": resident_bytes() - before}
    return about | prefill, generate


if __name__ == "__main__":
    serve(opened)
