"""Tiny .gguf files of the checkpoints in tests/models.py, written by the gguf package; knows nothing of the product."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors.numpy
from gguf.quants import quantize
from numpy.typing import NDArray

LAYERS = 4  # as many as the tiny models have, at most


def make_gguf(
    path: Path,
    folder: Path,
    *,
    kind: str = "F32",
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, NDArray[np.float32]] | None = None,
    text: bool = True,
) -> Path:
    """Convert the single-file checkpoint in `folder`: matrices to `kind`, vectors to F32.

    metadata: overrides, under whole key names; None removes a key. tensors: more of them, under their GGUF names.
    """
    config = json.loads((folder / "config.json").read_text())
    family = "llama" if config["model_type"] == "mistral" else config["model_type"]
    writer = gguf.GGUFWriter(path, family)
    fields = {**_shape_fields(config, family), **(_text_fields(folder) if text else {}), **(metadata or {})}
    for key, value in fields.items():
        _add(writer, key, value)
    for name, values in safetensors.numpy.load_file(folder / "model.safetensors").items():
        _add_tensor(writer, gguf_name(name, family), _interleave(name, values, config, family), kind)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str, family: str = "llama") -> str:
    """What a GGUF file of architecture `family` calls a tensor of Hugging Face's name."""
    found = _name_map(family).get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, name
    return found


@functools.cache
def _name_map(family: str) -> gguf.TensorNameMap:
    architectures = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(architectures[family], LAYERS)


def _shape_fields(config: dict[str, Any], family: str) -> dict[str, Any]:
    return {
        f"{family}.{key}": value
        for key, value in {
            "block_count": config["num_hidden_layers"],
            "context_length": config["max_position_embeddings"],
            "embedding_length": config["hidden_size"],
            "feed_forward_length": config["intermediate_size"],
            "attention.head_count": config["num_attention_heads"],
            "attention.head_count_kv": config["num_key_value_heads"],
            "attention.key_length": config["head_dim"],
            "attention.value_length": config["head_dim"],
            "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
            "rope.dimension_count": config["head_dim"],
            "rope.freq_base": config["rope_parameters"]["rope_theta"],
            "vocab_size": config["vocab_size"],
        }.items()
    }


def _text_fields(folder: Path) -> dict[str, Any]:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    tokens = sorted(vocab, key=vocab.__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.ggml.padding_token_id": 259,
        "tokenizer.chat_template": json.loads((folder / "tokenizer_config.json").read_text())["chat_template"],
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: NDArray[np.float32], kind: str) -> None:
    if values.ndim == 1 or kind == "F32":
        writer.add_tensor(name, values)
        return
    stored = gguf.GGMLQuantizationType[kind]
    writer.add_tensor(name, quantize(values, stored), raw_dtype=stored)


def _interleave(name: str, values: NDArray[np.float32], config: dict[str, Any], family: str) -> NDArray[np.float32]:
    """llama.cpp's row order of Q and K: of each head's rows, first half and second half by turns."""
    keys = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    part = name.split(".")[-2]
    if family != "llama" or part not in keys:
        return values
    halves = np.split(values.reshape(config[keys[part]], -1, *values.shape[1:]), 2, axis=1)
    return np.ascontiguousarray(np.stack(halves, axis=2).reshape(values.shape))
