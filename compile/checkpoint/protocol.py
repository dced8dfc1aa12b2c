"""What the compiler asks of a checkpoint, whatever its file format."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.weights.blocks import BlockFormat, BlockQuantized
from megrez.compile.families.config import ModelConfig
from megrez.runtime.manifest import SamplingDefaults, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TextAssets:
    """How the model reads and writes text.

    tokenizer_json: the bytes of a `tokenizers` file. chat_template: Jinja source, or None for a base model.
    bos_token, eos_token: the strings a template may ask for by these names. ignored: what the checkpoint recommends for
    generating and the runtime does not follow, each as "min_length 3".
    """

    tokenizer_json: bytes
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    tokens: Tokens
    sampling: SamplingDefaults
    ignored: tuple[str, ...] = ()


class Checkpoint(Protocol):
    """A model's weights under their Hugging Face names, read one tensor at a time and never kept."""

    @property
    def source(self) -> str:
        """A short name for the manifest: the folder's or file's name or the hub id, never a local path."""
        ...

    @property
    def config(self) -> ModelConfig: ...

    @property
    def text(self) -> TextAssets | None:
        """None where the checkpoint has no tokenizer, as a bare config.json."""
        ...

    def check(self) -> None:
        """Raise CheckpointError, before any work, if a tensor that the config needs is missing, misshapen or cut."""
        ...

    def fingerprint(self) -> str:
        """A SHA-256 that changes with the shape and with any weight; reads all of the files."""
        ...

    def read(self, name: str) -> NDArray[np.float32]:
        """The tensor, float32, in the checkpoint's own shape ([out_features, in_features] for a projection).

        A new array, which the caller may overwrite. Raises CheckpointError when it cannot be read or holds a NaN or an
        infinity.
        """
        ...

    def block_format(self, name: str) -> BlockFormat | None:
        """How `blocks` will answer, without reading the tensor."""
        ...

    def blocks(self, name: str) -> BlockQuantized | None:
        """The tensor in the 4- or 8-bit blocks it is stored in, losslessly; None where it is not stored so."""
        ...
