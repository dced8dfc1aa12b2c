"""vLLM on a GPU, with CUDA graphs: run by benchmarks/speed.py with its own Python. Not run yet: no GPU was at hand.

python run_vllm.py FOLDER THREADS CONTEXT OUTPUT_TOKENS STREAMS, then as turns.py says; THREADS is ignored
"""

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from turns import Line, prompts_of, serve, timed_whole
from vllm import LLM, SamplingParams, TokensPrompt


def opened(prompt: list[int]) -> tuple[Line, Callable[[], Line]]:
    folder, _, length, output_tokens, streams = sys.argv[1], *map(int, sys.argv[2:])
    llm = LLM(folder, dtype="bfloat16", max_model_len=length, max_num_seqs=streams, enable_prefix_caching=False)
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in prompts_of(prompt, streams)]

    def generate(tokens: int) -> None:
        llm.generate(prompts, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True), use_tqdm=False)

    size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    about = {"version": version("vllm"), "bytes": size}
    return about, lambda: timed_whole(len(prompt), output_tokens, generate, streams=streams)


if __name__ == "__main__":
    serve(opened)
