"""Which format each matrix of a model gets under a target; reads no weight."""

import re

from megrez.compile.checkpoint.derived import file_of
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.families.config import ModelConfig
from megrez.engines.targets import BLOCK_SIZES, Target
from megrez.engines.weight_formats import WeightFormat
from megrez.runtime.errors import UsageError

EMBED_TOKENS, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"
# The tensors that the lm_head may multiply: its own, or the embedding that it is tied to.
LM_HEAD_TABLES = (LM_HEAD, EMBED_TOKENS)
# TensorRT's kernels for 4 bits know no larger blocks.
LARGEST_PORTABLE = 128
LAYER = re.compile(r"model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.weight")


def fit_blocks(target: Target, config: ModelConfig, *, asked: bool) -> Target:
    """`target` with blocks that divide every matrix, which TensorRT needs: 64 for a hidden size of 576, say.

    asked: whether the user chose the blocks; other ones are then refused with UsageError, and left as they are in a
    graph that stays a reference.
    """
    block = None if target.weights is None else target.weights.block
    if asked and block is not None and block > LARGEST_PORTABLE and target.dequantizes:
        raise UsageError(
            f"--block-size {block} is for cpu and cuda targets: {target.name} takes {LARGEST_PORTABLE} or less"
        )
    widths = (config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
    if not target.dequantizes or block is None or all(width % block == 0 for width in widths):
        return target
    sizes = [size for size in map(int, BLOCK_SIZES) if size <= block]
    largest = max((size for size in sizes if all(width % size == 0 for width in widths)), default=None)
    if asked and target.engine == "portable":
        return target
    if asked or largest is None:
        hint = f"--block-size {largest}" if largest is not None else "a target without blocks"
        raise UsageError(
            f"{target.name} in blocks of {block} needs in_features that they divide, this model has "
            f"{', '.join(map(str, widths))}: choose {hint}"
        )
    return target.with_block(largest)


class Precision:
    """The target's formats, the finer one where rounding hurts most for its bytes.

    Measured on SmolLM2, 4 bits: values, a fortieth of Megrez's weights, carry the most of the loss for their size; down
    projections matter where activations are largest, in the first and last layers.
    """

    def __init__(self, checkpoint: Checkpoint, target: Target) -> None:
        self._checkpoint, self._target = checkpoint, target

    def wanted(self, name: str) -> WeightFormat | None:
        """The format of the checkpoint's tensor `name` where it is multiplied; None leaves it in float32."""
        target = self._target
        own = self._checkpoint.block_format(name)
        if name in LM_HEAD_TABLES:
            finer = target.embedding is not None and own is not None and own.bits == target.embedding.bits
            return target.embedding if finer else target.head  # blocks that are carried over lose nothing
        if target.weights is None or (own is not None and own.bits == target.weights.bits):
            return target.weights  # blocks that are carried over lose nothing
        return target.sensitive if self._is_sensitive(name) else target.weights

    def looked_up(self) -> WeightFormat | None:
        """The format of the embedding where tokens are looked up in it."""
        return self._target.embedding

    def common_rows(self, name: str, rows: int) -> int:
        """How many of a matrix's first rows are multiplied in the format of `looked_up` all the same.

        Tokenizers number their tokens as they learn them, the most common first: 8 bits for the first 32nd of a 4-bit
        head take away nearly as much of its loss as for the first sixteenth, which carries half of it.
        """
        wanted, finer = self.wanted(name), self._target.embedding
        if name not in LM_HEAD_TABLES or wanted is None or finer is None or wanted.bits >= finer.bits:
            return 0
        file = file_of(self._checkpoint)
        is_absent = name == LM_HEAD and file.config.tie_word_embeddings  # what was made of it may be untied
        in_file = None if is_absent else file.block_format(name)
        carried_over = in_file is not None and in_file.bits == wanted.bits
        return 0 if carried_over else rows // 32

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
        return kind == "v_proj" or (kind == "down_proj" and at_an_end)
