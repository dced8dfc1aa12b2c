"""ik_llama.cpp with a q8_0 KV cache and flash attention: run by benchmarks/kv_cache.py and long_prompt.py.

PEERS-PYTHON kv_ik_llama.py FILE THREADS LENGTHS STEPS, then as cached.py says
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version

import numpy as np
from cached import Q8_0, opened_contexts
from ik_llama_cpp import _ctypes_api as api
from ik_llama_cpp._internals import IkContext, IkModel
from turns import serve

# Not among the wrapper's functions: context, sequence, first position, position after the last (-1: the end).
_remove = api._lib.llama_kv_cache_seq_rm
_remove.argtypes, _remove.restype = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32], ctypes.c_bool


class Quantised(IkContext):
    """IkContext has no option for the cache's types."""

    def __init__(self, model: IkModel, threads: int, context: int) -> None:
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

    def read(self, tokens: Sequence[int], start: int) -> int:
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
        _remove(self.ctx, 0, start, -1)


def load(path: str, threads: int) -> Callable[[int], Quantised]:
    return partial(Quantised, IkModel(path), threads)


if __name__ == "__main__":
    serve(partial(opened_contexts, version("ik-llama-cpp-python"), load))
