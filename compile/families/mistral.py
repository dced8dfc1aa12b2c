"""Mistral: Llama without biases, one sliding window for all layers."""

from megrez.compile.families.family import Family
from megrez.compile.families.windows import one_window

FAMILY = Family(
    architecture="MistralForCausalLM",
    model_type="mistral",
    defaults={"sliding_window": 4096},
    sliding_windows=one_window,
    gguf=None,  # llama.cpp's converter calls it llama, and leaves the window out
)
