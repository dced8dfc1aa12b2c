"""Writes a sharded bfloat16 checkpoint in Megrez-3B's full shape, with random weights, to measure compilation.

python benchmarks/megrez_checkpoint.py FOLDER [--layers N] [--tokenizer]
/usr/bin/time -v megrez-compile FOLDER --target cpu-int4 -o BUNDLE
"""

import json
from collections.abc import Iterator
from pathlib import Path

import click
import torch
from random_checkpoint import SHAPE, write_tokenizer
from safetensors.torch import save_file

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.checkpoint.tensors import expected_tensors

LAYERS = 32
SHARD_BYTES = 2_000_000_000
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "eos_token_id": 120005,
    "torch_dtype": "bfloat16",
    **SHAPE,
}


def shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Names in order, each shard's tensors together at most SHARD_BYTES."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        grown = 2 * torch.Size(shape).numel()
        if names and size + grown > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += grown
    yield names


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--layers", default=LAYERS, show_default=True)
@click.option("--tokenizer", is_flag=True, help="Write a tokenizer of bytes too: calibration and fidelity need one.")
def main(folder: Path, layers: int, tokenizer: bool) -> None:
    """Write the checkpoint to FOLDER."""
    folder.mkdir(parents=True)
    config = {**CONFIG, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    if tokenizer:
        write_tokenizer(folder)
    checkpoint = open_checkpoint(str(folder), dummy_weights=True)
    parts = list(shards(expected_tensors(checkpoint.config)))
    weight_map = {}
    for number, names in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file({n: torch.from_numpy(checkpoint.read(n)).to(torch.bfloat16) for n in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
        print(f"{file}: {len(names)} tensors", flush=True)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


if __name__ == "__main__":
    main()
