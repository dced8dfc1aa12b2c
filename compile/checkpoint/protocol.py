"""The interface of a checkpoint, for every file format."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.weights.blocks import BlockFormat, BlockQuantized
from megrez.compile.families.config import ModelConfig
from megrez.runtime.manifest import SamplingDefaults, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TextAssets:
    """The model's tokenizer, chat template, special tokens and sampling.

    tokenizer_json: the bytes of a `tokenizers` file. chat_template: Jinja source, or None for a base model.
    bos_token, eos_token: variables of the template. ignored: generation options of the checkpoint that the runtime does
    not support, each as "min_length 3".
    """

    tokenizer_json: bytes
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    tokens: Tokens
    sampling: SamplingDefaults
    ignored: tuple[str, ...] = ()


class Checkpoint(Protocol):
    """A model's weights under their Hugging Face names, read one tensor at a time and never cached."""

    @property
    def source(self) -> str:
        """A short name for the manifest: the folder's or file's name or the hub id, never a local path."""
        ...

    @property
    def config(self) -> ModelConfig: ...

    @property
    def text(self) -> TextAssets | None:
        """None where the checkpoint has no tokenizer, such as a lone config.json."""
        ...

    def check(self) -> None:
        """Raise CheckpointError, before any work, if a required tensor is missing, misshapen or truncated."""
        ...

    def fingerprint(self) -> str:
        """A SHA-256 of the config and all weights; reads all of the files."""
        ...

    def read(self, name: str) -> NDArray[np.float32]:
        """The tensor, float32, in the checkpoint's own shape ([out_features, in_features] for a projection).

        A new array, which the caller may overwrite. Raises CheckpointError when it cannot be read or holds a NaN or an
        infinity.
        """
        ...

    def block_format(self, name: str) -> BlockFormat | None:
        """The format of `blocks`, without reading the tensor."""
        ...

    def blocks(self, name: str) -> BlockQuantized | None:
        """The tensor in its stored 4- or 8-bit blocks, without loss; None where it is not stored in such blocks."""
        ...
