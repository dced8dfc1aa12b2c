"""What the compiler needs to know of a model's shape, read from a Hugging Face config; knows no weights."""

from dataclasses import dataclass
from typing import Any


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
