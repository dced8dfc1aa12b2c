"""OpenVINO GenAI, from a folder of optimum-intel or a GGUF file: run by benchmarks/speed.py with its own Python.

python run_openvino.py PATH THREADS CONTEXT OUTPUT_TOKENS STREAMS, then as turns.py says

Its own clock: time to the first token, and time per output token after it, which is a step's time divided by its
streams (of 8 streams, the first and 31 tokens of each add up to the time of the whole call). Prefix caching is off,
since every turn has the same prompts.
"""

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino
import openvino_genai as genai
from turns import Line, prompts_of, serve


def opened(prompt: list[int]) -> tuple[Line, Callable[[], Line]]:
    path, threads, length, output_tokens, streams = sys.argv[1], *map(int, sys.argv[2:])
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False
    scheduler.max_num_batched_tokens = length * streams
    pipeline = genai.LLMPipeline(path, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads)
    config = genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = output_tokens
    config.ignore_eos, config.do_sample = True, False
    ids = np.array(prompts_of(prompt, streams), np.int64)
    inputs = genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))

    def generate() -> Line:
        metrics = pipeline.generate(inputs, config).perf_metrics
        first, token = metrics.get_ttft().mean / 1e3, metrics.get_tpot().mean / 1e3
        return {"prefill_tokens_per_s": ids.size / first, "decode_tokens_per_s": 1 / token}

    file = Path(path) / "openvino_model.bin" if Path(path).is_dir() else Path(path)
    return {"version": version("openvino-genai"), "bytes": file.stat().st_size}, generate


if __name__ == "__main__":
    serve(opened)
