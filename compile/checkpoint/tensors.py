"""The tensors of a model of a given config, by Hugging Face names; knows no file."""

import math

from megrez.compile.families.config import ModelConfig

Q_WIDTH = "num_attention_heads * head_dim"
KV_WIDTH = "num_key_value_heads * head_dim"


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the model, in the order of a forward pass."""
    sizes = {
        Q_WIDTH: config.num_attention_heads * config.head_dim,
        KV_WIDTH: config.num_key_value_heads * config.head_dim,
        "head_dim": config.head_dim,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
    }
    return {name: tuple(sizes[part] for part in parts) for name, parts in shape_fields(config).items()}


def parameter_count(config: ModelConfig) -> int:
    """Parameters of the model; a tied lm_head counts once."""
    return sum(math.prod(shape) for shape in expected_tensors(config).values())


def shape_fields(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """The same tensors, each dimension as the config's fields that determine it."""
    fields: dict[str, tuple[str, ...]] = {"model.embed_tokens.weight": ("vocab_size", "hidden_size")}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        fields |= {prefix + name: parts for name, parts in _layer_fields(config).items()}
    fields["model.norm.weight"] = ("hidden_size",)
    if not config.tie_word_embeddings:
        fields["lm_head.weight"] = ("vocab_size", "hidden_size")
    return fields


def _layer_fields(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    projections = {
        "self_attn.q_proj": (Q_WIDTH, "hidden_size", config.qkv_bias),
        "self_attn.k_proj": (KV_WIDTH, "hidden_size", config.qkv_bias),
        "self_attn.v_proj": (KV_WIDTH, "hidden_size", config.qkv_bias),
        "self_attn.o_proj": ("hidden_size", Q_WIDTH, config.output_bias),
        "mlp.gate_proj": ("intermediate_size", "hidden_size", config.mlp_bias),
        "mlp.up_proj": ("intermediate_size", "hidden_size", config.mlp_bias),
        "mlp.down_proj": ("hidden_size", "intermediate_size", config.mlp_bias),
    }
    fields: dict[str, tuple[str, ...]] = {"input_layernorm.weight": ("hidden_size",)}
    for name, (outputs, inputs, bias) in projections.items():
        fields[f"{name}.weight"] = (outputs, inputs)
        if bias:
            fields[f"{name}.bias"] = (outputs,)
    if config.qk_norm:
        fields |= {"self_attn.q_norm.weight": ("head_dim",), "self_attn.k_norm.weight": ("head_dim",)}
    fields["post_attention_layernorm.weight"] = ("hidden_size",)
    return fields
