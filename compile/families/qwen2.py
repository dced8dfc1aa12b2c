"""Qwen2 and Qwen2.5: biases on query, key and value, sliding windows in some layers."""

from megrez.compile.families.family import Family, Gguf
from megrez.compile.families.windows import windows_by_layer

FAMILY = Family(
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    defaults={"sliding_window": 4096, "max_window_layers": 28},
    qkv_bias=True,
    sliding_windows=windows_by_layer,
    gguf=Gguf(architecture="qwen2"),
)
