"""Writes a sharded bfloat16 checkpoint in Megrez-3B's full shape, with random weights, to measure compilation.

python benchmarks/megrez_checkpoint.py FOLDER
/usr/bin/time -v megrez-compile FOLDER --target cpu-int4 -o BUNDLE
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from random_checkpoint import SHAPE
from safetensors.torch import save_file

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.checkpoint.tensors import expected_tensors

LAYERS = 32
SHARD_BYTES = 2_000_000_000
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "num_hidden_layers": LAYERS,
    "tie_word_embeddings": False,
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


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2), encoding="utf-8")
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
    main(Path(sys.argv[1]))
