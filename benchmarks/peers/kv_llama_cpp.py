"""llama.cpp with a q8_0 KV cache and flash attention: run by benchmarks/kv_cache.py and long_prompt.py.

PEERS-PYTHON kv_llama_cpp.py FILE THREADS LENGTHS STEPS, then as cached.py says
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version

import llama_cpp as api
from cached import Q8_0, opened_contexts
from run_llama_cpp import step
from turns import serve


class Quantised:
    def __init__(self, model: object, threads: int, context: int) -> None:
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = context, context, 1
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = Q8_0
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._context = api.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError("llama_init_from_model failed")
        self._vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))

    def read(self, tokens: Sequence[int], start: int) -> int:
        return step(self._context, self._vocab_size, [list(tokens)], start)[0][0]

    def forget(self, start: int) -> None:
        api.llama_memory_seq_rm(api.llama_get_memory(self._context), 0, start, -1)


def load(path: str, threads: int) -> Callable[[int], Quantised]:
    api.llama_backend_init()
    model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
    return partial(Quantised, model, threads)


if __name__ == "__main__":
    serve(partial(opened_contexts, version("llama-cpp-python"), load))
