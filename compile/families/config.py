"""A model's config, read from a Hugging Face config with the fields of its family; knows no particular family."""

import difflib
from dataclasses import dataclass
from typing import Any

from megrez.compile.families.family import Family
from megrez.compile.families.fields import read_count, read_epsilon
from megrez.compile.families.registry import by_architecture, by_model_type
from megrez.compile.families.rope import read_rope
from megrez.runtime.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A Llama-GQA decoder. Field names follow Hugging Face's configs where they have one.

    rope: the `rope_parameters` of transformers 5 (`rope_type`, `rope_theta`, and the scaling's own keys).
    sliding_windows: per layer, how many tokens a position attends to (itself included), or None for all.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: dict[str, Any]
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_windows: tuple[int | None, ...]


# Values of fields that config.json omits; a family's defaults take precedence.
DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
_UNKNOWN = Family(architecture="unknown", model_type="unknown")


def read_config(data: dict[str, Any], *, source: str = "config.json") -> ModelConfig:
    """The config with the meaning that transformers gives this config.json.

    source: where the data comes from, for messages. Raises CheckpointError that names every fault.
    """
    faults: list[str] = []
    family = _family(data, faults)
    data = {**DEFAULTS, **family.defaults, **data}
    _refuse_variants(data, faults)
    heads = read_count(data, "num_attention_heads", faults)
    hidden = read_count(data, "hidden_size", faults)
    layers = read_count(data, "num_hidden_layers", faults)
    positions = read_count(data, "max_position_embeddings", faults)
    config = ModelConfig(
        model_type=family.model_type,
        hidden_size=hidden,
        intermediate_size=read_count(data, "intermediate_size", faults),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=_kv_heads(data, heads, faults),
        head_dim=_head_dim(data, hidden, heads, faults),
        vocab_size=read_count(data, "vocab_size", faults),
        max_position_embeddings=positions,
        rms_norm_eps=read_epsilon(data, faults),
        rope=read_rope(data, positions, faults),
        tie_word_embeddings=data["tie_word_embeddings"] is True,
        qkv_bias=_is_on(family.qkv_bias, data),
        output_bias=_is_on(family.output_bias, data),
        mlp_bias=_is_on(family.mlp_bias, data),
        qk_norm=family.qk_norm,
        sliding_windows=family.sliding_windows(data, layers, faults),
    )
    if faults:
        raise CheckpointError(f"{source} cannot be compiled: {'; '.join(faults)}")
    return config


def _family(data: dict[str, Any], faults: list[str]) -> Family:
    known = by_architecture()
    named = data.get("architectures")
    found = str(named[0]) if isinstance(named, list) and named else None
    model_type = data.get("model_type")
    if found is None and isinstance(model_type, str) and model_type in by_model_type():
        return by_model_type()[model_type]
    if found not in known:
        close = difflib.get_close_matches(str(found), known, n=1, cutoff=0.75)
        hint = f" (did you mean {close[0]}?)" if close else ""
        faults.append(f"architecture {found or model_type!r} is not supported{hint}: {', '.join(known)} are")
        return _UNKNOWN
    family = known[found]
    if model_type not in (None, family.model_type):
        faults.append(f"architectures says {found}, which has model_type {family.model_type!r}, not {model_type!r}")
    return family


def _is_on(part: bool | str, data: dict[str, Any]) -> bool:
    """Whether the model has an optional part, from its value in Family."""
    return data.get(part) is True if isinstance(part, str) else part


def _refuse_variants(data: dict[str, Any], faults: list[str]) -> None:
    for key in ("quantization_config", "compression_config"):
        if data.get(key):
            method = data[key].get("quant_method") if isinstance(data[key], dict) else None
            faults.append(
                f"it is already quantised ({key}, method {method or 'unnamed'!r}), which is not supported: "
                "take the model's unquantised checkpoint"
            )
    for key in SWITCHES:
        if not isinstance(data.get(key, False), bool):
            faults.append(f"{key} is {data[key]!r}, not true or false")
    if data.get("is_causal") is False:  # transformers 5 then masks nothing, whatever the architecture
        faults.append("is_causal is false: only causal attention is supported")
    if data["hidden_act"] != "silu":
        faults.append(f"hidden_act is {data['hidden_act']!r}, only 'silu' is supported")


def _kv_heads(data: dict[str, Any], heads: int, faults: list[str]) -> int:
    # null means multi-head attention; where the field is missing, the family's default applies.
    if data.get("num_key_value_heads", "missing") is None:
        return heads
    found = read_count(data, "num_key_value_heads", faults)
    if heads % found:
        faults.append(f"num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({found})")
    return found


def _head_dim(data: dict[str, Any], hidden: int, heads: int, faults: list[str]) -> int:
    if data.get("head_dim") is not None:
        found = read_count(data, "head_dim", faults)
    else:
        if hidden % heads and "hidden_size" in data:
            faults.append(f"hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads}), head_dim unset")
        found = hidden // heads
    if found % 2 and not any(fault.startswith(("hidden_size", "num_attention_heads", "head_dim")) for fault in faults):
        faults.append(f"head_dim is {found}: rotary embedding needs an even one")
    return found
