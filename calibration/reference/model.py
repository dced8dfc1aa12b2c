"""A model as calibration reads it: tensors by name, read when they are needed; knows no file format."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.reference.decoder import DecoderShape, rms_norm

Float32 = NDArray[np.float32]
EMBED_TOKENS = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """read: a tensor by its Hugging Face name, float32. names: of all tensors. windows: per layer, see ModelConfig."""

    read: Callable[[str], Float32]
    names: tuple[str, ...]
    shape: DecoderShape
    windows: tuple[int | None, ...]

    @property
    def layers(self) -> int:
        return len(self.windows)

    @property
    def lm_head_weight(self) -> str:
        """The name of the LM head's tensor: the embedding's where the two are tied."""
        return LM_HEAD if LM_HEAD in self.names else EMBED_TOKENS

    def prefix(self, layer: int) -> str:
        return f"model.layers.{layer}."

    def layer(self, layer: int) -> dict[str, Float32]:
        """One layer's tensors, by their names without the prefix."""
        prefix = self.prefix(layer)
        return {name.removeprefix(prefix): self.read(name) for name in self.names if name.startswith(prefix)}

    def embed(self, tokens: NDArray[np.int64]) -> Float32:
        """Hidden states before the first layer: [*tokens.shape, H]."""
        return self.read(EMBED_TOKENS)[tokens]

    def lm_head(self) -> "LMHead":
        norm, weight = self.read(FINAL_NORM), self.read(self.lm_head_weight)
        return LMHead(norm=norm, weight=weight, eps=self.shape.rms_norm_eps)


@dataclass(frozen=True, slots=True, kw_only=True)
class LMHead:
    """The final norm [H] and the projection to the vocabulary [vocab_size, H]."""

    norm: Float32
    weight: Float32
    eps: float

    def inputs(self, hidden: Float32) -> Float32:
        """The projection's input, [N, H]."""
        return rms_norm(hidden, self.norm, self.eps)

    def __call__(self, hidden: Float32) -> Float32:
        """Logits [N, vocab_size] of hidden states [N, H] after the last layer."""
        logits: Float32 = self.inputs(hidden) @ self.weight.T
        return logits
