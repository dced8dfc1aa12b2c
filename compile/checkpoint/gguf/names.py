"""Maps GGUF's tensor names to Hugging Face's, and llama.cpp's row order of Q and K; reads no file."""

import re

import numpy as np
from numpy.typing import NDArray

from megrez.compile.families.config import ModelConfig
from megrez.compile.families.family import Gguf
from megrez.compile.families.registry import by_model_type

ROPE_FACTORS = "rope_freqs.weight"

_OUTSIDE_LAYERS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def huggingface_name(name: str, config: ModelConfig) -> str | None:
    """None for a tensor that the decoder does not have."""
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if layer is None:
        return _OUTSIDE_LAYERS.get(name)
    number, part, kind = layer.groups()
    parts = {**_PARTS, **_stored_as(config).layer_tensors}
    return f"model.layers.{number}.{parts[part]}.{kind}" if part in parts else None


def row_order(name: str, config: ModelConfig) -> NDArray[np.intp] | None:
    """The stored row of each row of a Q or K; None where the order is Hugging Face's.

    For some families llama.cpp rotates neighbouring pairs, where Hugging Face rotates the two halves of a head, so the
    converter interleaves the rows.
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    part = name.split(".")[-2]
    if part not in heads or not _stored_as(config).interleaved_heads:
        return None
    stored = np.arange(heads[part] * config.head_dim)
    return stored.reshape(heads[part], config.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def _stored_as(config: ModelConfig) -> Gguf:
    stored = by_model_type()[config.model_type].gguf
    assert stored is not None, f"{config.model_type} has no GGUF architecture"
    return stored
