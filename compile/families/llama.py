"""Llama, and the many models that use its architecture: Megrez-3B, SmolLM2, TinyLlama."""

from megrez.compile.families.family import Family, Gguf

FAMILY = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    # Configs older than grouped-query attention do not have the field: every head has its own key and value.
    defaults={"num_key_value_heads": None},
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
    gguf=Gguf(architecture="llama", interleaved_heads=True),
)
