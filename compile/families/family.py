"""The description of a model family; knows no particular family.

A family whose graph is that of graph/export/module.py is added as a module of this package with a `FAMILY`, which
registry.py finds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megrez.compile.families.windows import no_windows

# (config.json's fields, layers, faults) -> per layer, how many tokens a position attends to, or None for all.
SlidingWindows = Callable[[Mapping[str, Any], int, list[str]], tuple[int | None, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gguf:
    """How llama.cpp's converter stores a family.

    architecture: `general.architecture` of its files, and the prefix of their keys.
    interleaved_heads: the rows of Q and K are reordered so that llama.cpp rotates neighbouring pairs.
    layer_tensors: a layer's GGUF names that differ from llama's -> Hugging Face names.
    """

    architecture: str
    interleaved_heads: bool = False
    layer_tensors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family of decoders: its names, the defaults of its config.json, and the optional parts of its layers.

    architecture: the class name in config.json's `architectures`.
    defaults: values of fields that config.json omits, where they differ from config.DEFAULTS.
    qkv_bias, output_bias, mlp_bias: present (True), absent (False), or present where this field of config.json is true.
    qk_norm: RMSNorm over each head's query and key, before the rotary embedding.
    gguf: None where the family has no GGUF architecture of its own.
    """

    architecture: str
    model_type: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    sliding_windows: SlidingWindows = no_windows
    gguf: Gguf | None = None
