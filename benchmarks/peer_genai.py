"""Speed of a model folder in onnxruntime-genai, by its Generator: run by benchmarks/speed.py with the peers' Python.

python peer_genai.py FOLDER THREADS CONTEXT OUTPUT_TOKENS REPEAT < prompt ids as JSON
"""

import json
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import onnxruntime_genai as og


def main() -> None:
    folder, threads, length, output_tokens, repeat = sys.argv[1], *map(int, sys.argv[2:])
    prompt = json.load(sys.stdin)
    config = og.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)
    prefill, decode = [], []
    for _ in range(1 + repeat):
        params = og.GeneratorParams(model)
        # Below min_length no end token is chosen.
        params.set_search_options(do_sample=False, max_length=length, min_length=len(prompt) + output_tokens)
        generator = og.Generator(model, params)
        start = time.perf_counter()
        generator.append_tokens(prompt)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(output_tokens - 1):
            generator.generate_next_token()
        prefill.append(len(prompt) / (first - start))
        decode.append((output_tokens - 1) / (time.perf_counter() - first))
    figures = {
        "version": version("onnxruntime-genai"),
        "prefill_tokens_per_s": statistics.median(prefill[1:]),
        "decode_tokens_per_s": statistics.median(decode[1:]),
        "bytes": sum(file.stat().st_size for file in Path(folder).glob("*.onnx*")),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
