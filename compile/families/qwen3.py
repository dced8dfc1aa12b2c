"""Qwen3: RMSNorm over each head's query and key, heads of 128 whatever the hidden size."""

from megrez.compile.families.family import Family, Gguf
from megrez.compile.families.windows import windows_by_layer

FAMILY = Family(
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    defaults={"head_dim": 128, "sliding_window": 4096, "max_window_layers": 28},
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    qk_norm=True,
    sliding_windows=windows_by_layer,
    gguf=Gguf(architecture="qwen3"),
)
