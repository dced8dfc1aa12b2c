"""What the compiler has to know of a model family, in one description; knows no particular family.

A family whose graph is the one in graph/export/module.py is added as a module of this package that holds a `FAMILY`:
registry.py finds it, and no other list names it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megrez.compile.families.windows import no_windows

# (config.json's fields, layers, faults) -> per layer, how many tokens a position sees, or None for all.
SlidingWindows = Callable[[Mapping[str, Any], int, list[str]], tuple[int | None, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gguf:
    """How llama.cpp's converter stores a family.

    architecture: `general.architecture` of its files, and the prefix of their keys.
    interleaved_heads: the rows of Q and K are reordered so that llama.cpp rotates neighbouring pairs.
    layer_tensors: where its names are not llama's, a layer's tensors as GGUF calls them -> as Hugging Face does.
    """

    architecture: str
    interleaved_heads: bool = False
    layer_tensors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family of decoders: the names it goes by, how its config.json is read, which optional parts its layers have.

    architecture: the class name in config.json's `architectures`.
    defaults: what fields mean that config.json leaves out, where that differs from config.DEFAULTS.
    qkv_bias, output_bias, mlp_bias: always there (True), never (False), or where the field of this name is true.
    qk_norm: RMSNorm over each head's query and key, before the rotary embedding.
    gguf: None where GGUF files of the family are not read under an architecture of their own.
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
