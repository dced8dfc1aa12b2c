"""ModelConfig from a .gguf file's metadata, by way of the config.json it was converted from; reads no tensor but one.

That one is rope_freqs.weight: converters bake Llama 3's rope scaling into it and drop the numbers it came from.
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
    """read_floats: a tensor by its GGUF name. Raises CheckpointError naming what is not supported, and `source`."""
    architecture = header.metadata.get("general.architecture")
    _refuse_parts(header, source)
    known = by_gguf_architecture()
    if architecture not in known:
        raise CheckpointError(
            f"{source} has architecture {architecture!r}, which is not supported: {', '.join(known)} are"
        )
    prefix = f"{architecture}."
    facts = {key[len(prefix) :]: value for key, value in header.metadata.items() if key.startswith(prefix)}
    _refuse_variants(header, facts, source)
    data: dict[str, Any] = {key: _plain(facts[name]) for key, name in _FIELDS.items() if name in facts}
    data |= {
        "architectures": [known[architecture].architecture],
        "vocab_size": _rows(header, "token_embd.weight"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "rope_parameters": _rope(header, facts, read_floats, source),
    }
    config = read_config(data, source=source)
    _refuse_partial_heads(config, facts, source)
    return replace(
        config,
        qkv_bias="blk.0.attn_q.bias" in header.tensors,
        output_bias="blk.0.attn_output.bias" in header.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in header.tensors,
    )


def _refuse_variants(header: GgufHeader, facts: dict[str, Any], source: str) -> None:
    if facts.get("expert_count"):
        raise CheckpointError(f"{source} has {facts['expert_count']} experts: mixtures of experts are not supported")


def _refuse_parts(header: GgufHeader, source: str) -> None:
    """Of a model in parts, all but the first have no architecture."""
    if header.metadata.get("split.count", 1) > 1:
        raise CheckpointError(
            f"{source} is one of {header.metadata['split.count']} parts: join them with  llama-gguf-split --merge"
        )


def _refuse_partial_heads(config: ModelConfig, facts: dict[str, Any], source: str) -> None:
    for name in ("rope.dimension_count", "attention.value_length"):
        if facts.get(name, config.head_dim) != config.head_dim:
            raise CheckpointError(f"{source} has {name} {facts[name]}: only head_dim, {config.head_dim}, is supported")


def _plain(value: Any) -> Any:
    # The shortest decimal of a float32 is what the config.json said: 1e-05, not 9.999999747378752e-06.
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _rows(header: GgufHeader, name: str) -> int | None:
    return header.tensors[name].shape[0] if name in header.tensors else None


def _rope(
    header: GgufHeader, facts: dict[str, Any], read_floats: Callable[[str], NDArray[np.float32]], source: str
) -> dict[str, Any]:
    theta = _plain(facts.get("rope.freq_base", 10000.0))
    # As llama.cpp reads it: a factor alone, which older files have under another key, is linear scaling.
    factor = facts.get("rope.scaling.factor", facts.get("rope.scale_linear", 0))
    kind = facts.get("rope.scaling.type", "linear" if factor not in (0, 1) else "none")
    rope: dict[str, Any] = {"rope_theta": theta, "rope_type": "default" if kind == "none" else kind}
    if kind == "linear":
        rope["factor"] = _plain(factor)
    for key, value in facts.items():
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
    """The llama3 scaling whose factors are `stored` [head_dim / 2]; Meta's own numbers but for the factor."""
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
    """By what each frequency is divided: 1 for short waves, `factor` for long ones, a blend between.

    Source: Llama 3.1's published rope scaling.
    """
    waves = 2 * np.pi * rope["rope_theta"] ** (np.arange(count) / count)
    length, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((length / waves - low) / (high - low), 0, 1)
    factors: NDArray[np.float64] = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return factors
