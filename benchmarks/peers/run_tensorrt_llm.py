"""TensorRT-LLM on a GPU: run by benchmarks/speed.py with its own Python. Not run yet: no GPU was at hand.

python run_tensorrt_llm.py FOLDER THREADS CONTEXT OUTPUT_TOKENS STREAMS, then as turns.py says; THREADS is ignored
"""

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from tensorrt_llm import LLM, SamplingParams
from tensorrt_llm.llmapi import KvCacheConfig
from turns import Line, prompts_of, serve, timed_whole


def opened(prompt: list[int]) -> tuple[Line, Callable[[], Line]]:
    folder, _, length, output_tokens, streams = sys.argv[1], *map(int, sys.argv[2:])
    cache = KvCacheConfig(enable_block_reuse=False)
    llm = LLM(folder, dtype="bfloat16", max_seq_len=length, max_batch_size=streams, kv_cache_config=cache)
    prompts = prompts_of(prompt, streams)

    def generate(tokens: int) -> None:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        llm.generate(prompts, params, use_tqdm=False)

    size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    about = {"version": version("tensorrt_llm"), "bytes": size}
    return about, lambda: timed_whole(len(prompt), output_tokens, generate, streams=streams)


if __name__ == "__main__":
    serve(opened)
