"""ModelConfig from a .gguf file's metadata, by reconstructing its config.json; reads one tensor.

That is rope_freqs.weight, into which converters fold Llama 3's rope scaling without storing its parameters.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megrez.compile.checkpoint.gguf.file import GgufHeader
from megrez.compile.checkpoint.gguf.names import ROPE_FACTORS
from megrez.compile.families.config import ModelConfig, read_config
from megrez.compile.families.registry import by_gguf_architecture
from megrez.runtime.errors import CheckpointError

_FIELDS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_SCALING = {
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
_LLAMA3_LENGTH = 8192  # what Llama 3.1 and 3.2 were trained on before scaling; the file does not say


def read_gguf_config(
    header: GgufHeader, read_floats: Callable[[str], NDArray[np.float32]], *, source: str
) -> ModelConfig:
    """read_floats: reads a tensor by GGUF name. Raises CheckpointError, naming `source`, for what is unsupported."""
    architecture = header.metadata.get("general.architecture")
    _refuse_parts(header, source)
    families = by_gguf_architecture()
    if architecture not in families:
        raise CheckpointError(
            f"{source} has architecture {architecture!r}, which is not supported: {', '.join(families)} are"
        )
    prefix = f"{architecture}."
    fields = {key[len(prefix) :]: value for key, value in header.metadata.items() if key.startswith(prefix)}
    _refuse_variants(header, fields, source)
    data: dict[str, Any] = {key: _plain(fields[name]) for key, name in _FIELDS.items() if name in fields}
    data |= {
        "architectures": [families[architecture].architecture],
        "vocab_size": _rows(header, "token_embd.weight"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "rope_parameters": _rope(header, fields, read_floats, source),
    }
    config = read_config(data, source=source)
    _refuse_partial_heads(config, fields, source)
    return replace(
        config,
        qkv_bias="blk.0.attn_q.bias" in header.tensors,
        output_bias="blk.0.attn_output.bias" in header.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in header.tensors,
    )


def _refuse_variants(header: GgufHeader, fields: dict[str, Any], source: str) -> None:
    if fields.get("expert_count"):
        raise CheckpointError(f"{source} has {fields['expert_count']} experts: mixtures of experts are not supported")


def _refuse_parts(header: GgufHeader, source: str) -> None:
    """Raise CheckpointError for one of several parts; only the first part has an architecture."""
    if header.metadata.get("split.count", 1) > 1:
        raise CheckpointError(
            f"{source} is one of {header.metadata['split.count']} parts: join them with  llama-gguf-split --merge"
        )


def _refuse_partial_heads(config: ModelConfig, fields: dict[str, Any], source: str) -> None:
    for name in ("rope.dimension_count", "attention.value_length"):
        if fields.get(name, config.head_dim) != config.head_dim:
            raise CheckpointError(f"{source} has {name} {fields[name]}: only head_dim, {config.head_dim}, is supported")


def _plain(value: Any) -> Any:
    # The shortest decimal of a float32 is that of the config.json: 1e-05, not 9.999999747378752e-06.
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _rows(header: GgufHeader, name: str) -> int | None:
    return header.tensors[name].shape[0] if name in header.tensors else None


def _rope(
    header: GgufHeader, fields: dict[str, Any], read_floats: Callable[[str], NDArray[np.float32]], source: str
) -> dict[str, Any]:
    theta = _plain(fields.get("rope.freq_base", 10000.0))
    # As in llama.cpp: a factor without a type, which older files have under another key, is linear scaling.
    factor = fields.get("rope.scaling.factor", fields.get("rope.scale_linear", 0))
    kind = fields.get("rope.scaling.type", "linear" if factor not in (0, 1) else "none")
    rope: dict[str, Any] = {"rope_theta": theta, "rope_type": "default" if kind == "none" else kind}
    if kind == "linear":
        rope["factor"] = _plain(factor)
    for key, value in fields.items():
        name = key.removeprefix("rope.scaling.")
        if name == key or name in ("type", "finetuned") or kind == "none":
            continue
        if name not in _SCALING:
            raise CheckpointError(
                f"{source} has {key} {value}, which is not supported: take the safetensors checkpoint"
            )
        rope[_SCALING[name]] = _plain(value)
    if ROPE_FACTORS in header.tensors:
        return _llama3(theta, read_floats(ROPE_FACTORS), source)
    return rope


def _llama3(theta: float, stored: NDArray[np.float32], source: str) -> dict[str, Any]:
    """The llama3 scaling whose factors are `stored` [head_dim / 2]; Meta's parameters except for the factor."""
    rope: dict[str, Any] = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": _plain(float(stored.max())),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": _LLAMA3_LENGTH,
    }
    if not np.allclose(_llama3_factors(rope, stored.size), stored, rtol=1e-4):
        raise CheckpointError(
            f"{source} has a {ROPE_FACTORS} that is not Llama 3's scaling: take the safetensors checkpoint"
        )
    return rope


def _llama3_factors(rope: dict[str, Any], count: int) -> NDArray[np.float64]:
    """The divisor of each frequency: 1 for short wavelengths, `factor` for long ones, interpolated between.

    Source: Llama 3.1's published rope scaling.
    """
    waves = 2 * np.pi * rope["rope_theta"] ** (np.arange(count) / count)
    length, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((length / waves - low) / (high - low), 0, 1)
    factors: NDArray[np.float64] = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return factors
