"""What the compiler needs to know of a model's shape, read from a Hugging Face config; knows no weights."""

import difflib
from dataclasses import dataclass
from typing import Any

from megrez.compile.families.rope import read_rope
from megrez.runtime.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A Llama-GQA decoder. Field names follow Hugging Face's configs where they have one.

    rope: the `rope_parameters` of transformers 5 (`rope_type`, `rope_theta`, and the scaling's own keys).
    sliding_windows: per layer, how many tokens a position sees (itself included), or None for all.
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


KINDS = ("full_attention", "sliding_attention")
MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}


def read_config(data: dict[str, Any], *, source: str = "config.json") -> ModelConfig:
    """The shape that transformers gives a model with this config.json.

    Raises CheckpointError that names every fault, and `source`, where the data came from.
    """
    faults: list[str] = []
    model_type = _model_type(data, faults)
    _refuse_variants(data, faults)
    heads = _count(data, "num_attention_heads", faults)
    hidden = _count(data, "hidden_size", faults)
    layers = _count(data, "num_hidden_layers", faults)
    positions = _count(data, "max_position_embeddings", faults)
    attention_bias = model_type in ("llama", "qwen3") and data.get("attention_bias") is True
    config = ModelConfig(
        model_type=model_type,
        hidden_size=hidden,
        intermediate_size=_count(data, "intermediate_size", faults),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=_kv_heads(data, model_type, heads, faults),
        head_dim=_head_dim(data, model_type, hidden, heads, faults),
        vocab_size=_count(data, "vocab_size", faults),
        max_position_embeddings=positions,
        rms_norm_eps=_epsilon(data, faults),
        rope=read_rope(data, positions, faults),
        tie_word_embeddings=data.get("tie_word_embeddings") is True,
        qkv_bias=attention_bias or model_type == "qwen2",
        output_bias=attention_bias,
        mlp_bias=model_type == "llama" and data.get("mlp_bias") is True,
        qk_norm=model_type == "qwen3",
        sliding_windows=_sliding_windows(data, model_type, layers, faults),
    )
    if faults:
        raise CheckpointError(f"{source} cannot be compiled: {'; '.join(faults)}")
    return config


def _model_type(data: dict[str, Any], faults: list[str]) -> str:
    named = data.get("architectures")
    found = str(named[0]) if isinstance(named, list) and named else None
    model_type = data.get("model_type")
    if found is None and model_type in MODEL_TYPES.values():
        return str(model_type)
    if found not in MODEL_TYPES:
        close = difflib.get_close_matches(str(found), MODEL_TYPES, n=1, cutoff=0.75)
        hint = f" (did you mean {close[0]}?)" if close else ""
        faults.append(f"architecture {found or model_type!r} is not supported{hint}: {', '.join(MODEL_TYPES)} are")
        return "unknown"
    if model_type not in (None, MODEL_TYPES[found]):
        faults.append(f"architectures says {found}, which has model_type {MODEL_TYPES[found]!r}, not {model_type!r}")
    return MODEL_TYPES[found]


def _refuse_variants(data: dict[str, Any], faults: list[str]) -> None:
    for key in ("quantization_config", "compression_config"):
        if data.get(key):
            method = data[key].get("quant_method") if isinstance(data[key], dict) else None
            faults.append(
                f"it is quantized already ({key}, method {method or 'unnamed'!r}), which is not supported yet: "
                "take the model's unquantized checkpoint"
            )
    if data.get("hidden_act", "silu") != "silu":
        faults.append(f"hidden_act is {data['hidden_act']!r}, only 'silu' is supported")


def _count(data: dict[str, Any], key: str, faults: list[str]) -> int:
    """A positive int; a fault is noted once and 1 stands in, so that the checks that follow can go on."""
    value = data.get(key)
    if type(value) is int and value > 0:
        return value
    faults.append(f"{key} is missing" if value is None else f"{key} is {value!r}, not a positive integer")
    return 1


def _epsilon(data: dict[str, Any], faults: list[str]) -> float:
    value = data.get("rms_norm_eps", 1e-6)
    if type(value) in (int, float) and 0 < value < 1:
        return float(value)
    faults.append(f"rms_norm_eps is {value!r}, not a number between 0 and 1")
    return 1.0


def _kv_heads(data: dict[str, Any], model_type: str, heads: int, faults: list[str]) -> int:
    # An explicit null means multi-head attention everywhere; a missing key does so in Llama's config only.
    implied = data.get("num_key_value_heads", "missing") is None or model_type == "llama"
    if implied and data.get("num_key_value_heads") is None:
        return heads
    found = _count(data, "num_key_value_heads", faults)
    if heads % found:
        faults.append(f"num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({found})")
    return found


def _head_dim(data: dict[str, Any], model_type: str, hidden: int, heads: int, faults: list[str]) -> int:
    if data.get("head_dim") is not None:
        found = _count(data, "head_dim", faults)
    elif model_type == "qwen3":
        return 128
    else:
        if hidden % heads and "hidden_size" in data:
            faults.append(f"hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads}), head_dim unset")
        found = hidden // heads
    if found % 2 and not any(fault.startswith(("hidden_size", "num_attention_heads", "head_dim")) for fault in faults):
        faults.append(f"head_dim is {found}: rotary embedding needs an even one")
    return found


def _sliding_windows(data: dict[str, Any], model_type: str, layers: int, faults: list[str]) -> tuple[int | None, ...]:
    if model_type == "mistral":
        return (_window(data, faults),) * layers
    if model_type not in ("qwen2", "qwen3"):
        return (None,) * layers
    window = _window(data, faults) if data.get("use_sliding_window") is True else None
    first = data.get("max_window_layers", 28)
    kinds = data.get("layer_types")
    if kinds is None and window is not None:
        if type(first) is int:
            return tuple(window if i >= first else None for i in range(layers))
        faults.append(f"max_window_layers is {first!r}, not an integer")
    if kinds is None:
        return (None,) * layers
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in KINDS for kind in kinds):
        faults.append(f"layer_types must name full_attention or sliding_attention for {layers} layers, found {kinds}")
        return (None,) * layers
    if window is None and "sliding_attention" in kinds:
        faults.append("layer_types has sliding_attention, but use_sliding_window and sliding_window give no window")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _window(data: dict[str, Any], faults: list[str]) -> int | None:
    # 4096 is what these families' configs mean when the key is missing; null turns the window off.
    return (
        None
        if data.get("sliding_window", 4096) is None
        else _count({"sliding_window": 4096, **data}, "sliding_window", faults)
    )
