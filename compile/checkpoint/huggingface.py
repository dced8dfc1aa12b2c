"""A Hugging Face folder as a Checkpoint: config.json and safetensors; uses no network and opens no pickle."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.reference.model import EMBED_TOKENS, LM_HEAD
from megrez.calibration.weights.blocks import BlockFormat, BlockQuantized
from megrez.compile.checkpoint.faults import raise_faults, shape_faults
from megrez.compile.checkpoint.fingerprint import fingerprint_of
from megrez.compile.checkpoint.floats import DTYPES
from megrez.compile.checkpoint.json_file import read_object
from megrez.compile.checkpoint.protocol import TextAssets
from megrez.compile.checkpoint.safetensors_file import StoredTensor, read_header, read_rows, same_values
from megrez.compile.checkpoint.tensors import expected_tensors
from megrez.compile.checkpoint.text import read_text_assets
from megrez.compile.families.config import ModelConfig, read_config
from megrez.runtime.errors import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
REMEDY = "download the checkpoint again, or correct its config.json"


class HuggingFaceCheckpoint:
    """The Checkpoint in `folder`. `source` is what the manifest calls it."""

    def __init__(self, folder: Path, *, source: str) -> None:
        self._folder = folder
        self.source = source
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} holds no config.json: name the folder of a Hugging Face checkpoint")
        self._stated = read_config(read_object(folder / "config.json"))

    @cached_property
    def config(self) -> ModelConfig:
        """That of config.json, but untied where the stored lm_head differs from the embedding, as in transformers 5."""
        if not self._stated.tie_word_embeddings or not {EMBED_TOKENS, LM_HEAD} <= self._tensors.keys():
            return self._stated
        equal = same_values(self._tensors[EMBED_TOKENS], self._tensors[LM_HEAD])
        return replace(self._stated, tie_word_embeddings=equal)

    @cached_property
    def text(self) -> TextAssets | None:
        return read_text_assets(self._folder, vocab_size=self._stated.vocab_size)

    def check(self) -> None:
        """See the protocol; reads the files' headers and the tokenizer's files."""
        tensors = self._weights
        expected = expected_tensors(self.config)
        needed = [tensors[name] for name in expected if name in tensors]
        # Unexpected biases and norm weights are vectors of floats; all else is a buffer.
        vectors = [tensor for tensor in tensors.values() if tensor.dtype in DTYPES and len(tensor.shape) == 1]
        faults = shape_faults(self.config, {tensor.name: tensor.shape for tensor in (*needed, *vectors)})
        faults += [
            f"{tensor.name} in {tensor.path.name} is stored as {tensor.dtype} (only {', '.join(DTYPES)} can be read)"
            for tensor in needed
            if tensor.dtype not in DTYPES
        ]
        raise_faults(self.source, faults, REMEDY)
        _ = self.text

    def fingerprint(self) -> str:
        return fingerprint_of(self.config, sorted({tensor.path for tensor in self._tensors.values()}))

    def read(self, name: str) -> NDArray[np.float32]:
        return self.rows(name, 0, self._stored(name).shape[0])

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of a tensor, to read a large one in parts."""
        return read_rows(self._stored(name), start, stop)

    def block_format(self, name: str) -> BlockFormat | None:
        return None

    def blocks(self, name: str) -> BlockQuantized | None:
        """None: the weights are floats."""
        return None

    def _stored(self, name: str) -> StoredTensor:
        if name not in self._weights:
            raise CheckpointError(f"{self.source} has no tensor {name}: {REMEDY}")
        return self._weights[name]

    @cached_property
    def _weights(self) -> dict[str, StoredTensor]:
        """The stored tensors; in a tied model that stores only the lm_head, it is the embedding too."""
        if not self.config.tie_word_embeddings:
            return self._tensors
        weights = {name: tensor for name, tensor in self._tensors.items() if name != LM_HEAD}
        if EMBED_TOKENS not in weights and LM_HEAD in self._tensors:
            weights[EMBED_TOKENS] = replace(self._tensors[LM_HEAD], name=EMBED_TOKENS)
        return weights

    @cached_property
    def _tensors(self) -> dict[str, StoredTensor]:
        if (self._folder / SINGLE).is_file():  # takes precedence over an index from an older save, as in transformers
            return read_header(self._folder / SINGLE)
        if (self._folder / INDEX).is_file():
            return _read_shards(self._folder, self.source)
        raise CheckpointError(_no_weights(self._folder))


def _read_shards(folder: Path, source: str) -> dict[str, StoredTensor]:
    weight_map = read_object(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{INDEX} has no weight_map from tensors to files: download it again")
    shards = sorted(set(weight_map.values()))
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    raise_faults(source, [f"{shard}, which {INDEX} names, is not there" for shard in absent], "download it")
    headers = {shard: read_header(folder / shard) for shard in shards}
    faults = [
        f"{INDEX} puts {name} in {shard}, which does not have it"
        for name, shard in weight_map.items()
        if name not in headers[shard]
    ]
    raise_faults(source, faults, "download the checkpoint again")
    return {name: headers[shard][name] for name, shard in weight_map.items()}


def _no_weights(folder: Path) -> str:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        return (
            f"{folder} holds its weights only as a pickle (pytorch_model.bin), which is never read because it can run "
            "code: where you trust it, convert it with transformers' from_pretrained and save_pretrained"
        )
    return f"{folder} holds neither {SINGLE} nor {INDEX}: download the checkpoint's weights"
