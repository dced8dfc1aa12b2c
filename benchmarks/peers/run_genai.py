"""onnxruntime-genai, through its Generator: run by benchmarks/speed.py with its own Python.

python run_genai.py FOLDER THREADS CONTEXT OUTPUT_TOKENS STREAMS, then as turns.py says; 0 threads are its default
"""

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
from turns import Line, prompts_of, serve, timed


def opened(prompt: list[int]) -> tuple[Line, Callable[[], Line]]:
    folder, threads, length, output_tokens, streams = sys.argv[1], *map(int, sys.argv[2:])
    config = og.Config(folder)
    if threads:
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)

    def generate() -> Line:
        params = og.GeneratorParams(model)
        # Below min_length no end token is chosen.
        params.set_search_options(
            do_sample=False, max_length=length, min_length=len(prompt) + output_tokens, batch_size=streams
        )
        generator = og.Generator(model, params)

        def first() -> None:
            generator.append_tokens(np.array(prompts_of(prompt, streams), np.int32))
            generator.generate_next_token()

        return timed(len(prompt), output_tokens, first, generator.generate_next_token, streams=streams)

    size = sum(file.stat().st_size for file in Path(folder).glob("*.onnx*"))
    return {"version": version("onnxruntime-genai"), "bytes": size}, generate


if __name__ == "__main__":
    serve(opened)
