"""transformers: run by benchmarks/speed.py with its own Python.

python run_transformers.py FOLDER THREADS CONTEXT OUTPUT_TOKENS STREAMS, then as turns.py says

On a CPU in float32, since it has no 4-bit kernels there, with its default KV cache; on a GPU in bfloat16 with a static
one, each step replayed as a CUDA graph by torch.compile. The latter has not been run yet.
"""

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache
from turns import Line, prompts_of, serve, timed


@torch.inference_mode()
def opened(prompt: list[int]) -> tuple[Line, Callable[[], Line]]:
    folder, threads, length, output_tokens, streams = sys.argv[1], *map(int, sys.argv[2:])
    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    if threads:
        torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True) if on_gpu else model.forward
    static = StaticCache(config=model.config, max_cache_len=length) if on_gpu else None
    prompts = torch.tensor(prompts_of(prompt, streams), device=device)

    @torch.inference_mode()
    def generate() -> Line:
        if static is not None:
            static.reset()
        cache = DynamicCache(config=model.config) if static is None else static
        ids = prompts
        position = 0

        def step(call: Callable[..., object]) -> None:
            nonlocal ids, position
            places = torch.arange(position, position + ids.shape[1], device=device)
            position += ids.shape[1]
            found = call(input_ids=ids, past_key_values=cache, cache_position=places, logits_to_keep=1)
            ids = found.logits[:, -1].argmax(-1, keepdim=True)
            if on_gpu:
                torch.cuda.synchronize()

        return timed(len(prompt), output_tokens, lambda: step(model), lambda: step(forward), streams=streams)

    size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    return {"version": version("transformers"), "bytes": size}, generate


if __name__ == "__main__":
    serve(opened)
