"""Which format each matrix of a model gets under a target; reads no weight."""

import re

from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.engines.targets import Target, WeightFormat

EMBEDDING = "model.embed_tokens.weight"
HEAD = ("lm_head.weight", EMBEDDING)
LAYER = re.compile(r"model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.weight")


class Precision:
    """The target's formats, the finer one where rounding hurts most for its bytes.

    Measured on SmolLM2, 4 bits: keys and values, a few percent of the weights, carry a quarter of the loss; down
    projections matter where activations are largest, in the first and last layers.
    """

    def __init__(self, checkpoint: Checkpoint, target: Target) -> None:
        self._checkpoint, self._target = checkpoint, target

    def wanted(self, name: str) -> WeightFormat | None:
        """The format of the checkpoint's tensor `name`; None leaves it in float32."""
        target = self._target
        if name in HEAD:
            return target.head
        own = self._checkpoint.block_format(name)
        if target.weights is None or (own is not None and own.bits == target.weights.bits):
            return target.weights  # blocks that are carried over lose nothing
        return target.sensitive if self._is_sensitive(name) else target.weights

    def group(self, name: str) -> object:
        """Equal for tensors that can be stored as one matrix."""
        wanted = self.wanted(name)
        return None if wanted is None else (wanted, self._checkpoint.block_format(name))

    def _is_sensitive(self, name: str) -> bool:
        if self._target.finer is not None:
            return name in self._target.finer
        found = LAYER.fullmatch(name)
        if found is None:
            return False
        layer, kind, layers = int(found[1]), found[2], self._checkpoint.config.num_hidden_layers
        eighth = layers // 8
        at_an_end = layer < eighth or layer >= layers - eighth
        return kind in ("k_proj", "v_proj") or (kind == "down_proj" and at_an_end)
