"""Seed-OSS: Llama with heads of 128, biases on query, key and value, and a separate switch for the output's."""

from megrez.compile.families.family import Family, Gguf

FAMILY = Family(
    architecture="SeedOssForCausalLM",
    model_type="seed_oss",
    defaults={"head_dim": 128, "attention_bias": True},
    qkv_bias="attention_bias",
    output_bias="attention_out_bias",
    mlp_bias="mlp_bias",
    gguf=Gguf(architecture="seed_oss", layer_tensors={"post_attention_norm": "post_attention_layernorm"}),
)
