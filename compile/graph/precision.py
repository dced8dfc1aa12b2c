"""The weight format of each matrix of a model for a target; reads no weight."""

import re

from megrez.calibration.reference.model import EMBED_TOKENS, LM_HEAD
from megrez.compile.checkpoint.derived import file_of
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.families.config import ModelConfig
from megrez.engines.targets import BLOCK_SIZES, Target
from megrez.engines.weight_formats import WeightFormat
from megrez.runtime.errors import UsageError

# The weights that the LM head may have: its stored, or the embedding to which it is tied.
LM_HEAD_TABLES = (LM_HEAD, EMBED_TOKENS)
# TensorRT's 4-bit kernels support no larger blocks.
LARGEST_PORTABLE = 128
LAYER = re.compile(r"model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.weight")


def fit_block_size(target: Target, config: ModelConfig, *, requested: bool) -> Target:
    """`target` with a block size that divides every matrix, as TensorRT needs: 64 for a hidden size of 576.

    requested: whether the user chose the block size, which is then never changed: one that does not divide is kept in
    a portable graph, and otherwise raises UsageError.
    """
    block = None if target.weights is None else target.weights.block
    if requested and block is not None and block > LARGEST_PORTABLE and target.dequantizes:
        raise UsageError(
            f"--block-size {block} is for cpu and cuda targets: {target.name} takes {LARGEST_PORTABLE} or less"
        )
    widths = (config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
    if not target.dequantizes or block is None or all(width % block == 0 for width in widths):
        return target
    sizes = [size for size in map(int, BLOCK_SIZES) if size <= block]
    largest = max((size for size in sizes if all(width % size == 0 for width in widths)), default=None)
    if requested and target.engine == "portable":
        return target
    if requested or largest is None:
        hint = f"--block-size {largest}" if largest is not None else "a target without blocks"
        raise UsageError(
            f"{target.name} in blocks of {block} needs in_features that are multiples of it, this model has "
            f"{', '.join(map(str, widths))}: choose {hint}"
        )
    return target.with_block(largest)


class Precision:
    """The target's formats, with higher precision where quantisation costs most for its bytes.

    Measured on SmolLM2 in 4 bits: v_proj, a fortieth of Megrez's weights, causes the most loss for its size; down_proj
    does where activations are largest, in the first and last layers.
    """

    def __init__(self, checkpoint: Checkpoint, target: Target) -> None:
        self._checkpoint, self._target = checkpoint, target

    def format_of(self, name: str) -> WeightFormat | None:
        """The format of the checkpoint's matrix `name` as a projection's weight; None leaves it in float32."""
        target = self._target
        stored = self._checkpoint.block_format(name)
        if name in LM_HEAD_TABLES:
            is_stored_so = target.embedding is not None and stored is not None and stored.bits == target.embedding.bits
            return target.embedding if is_stored_so else target.head  # stored blocks that are kept lose nothing
        if target.weights is None or (stored is not None and stored.bits == target.weights.bits):
            return target.weights  # stored blocks that are kept lose nothing
        return target.sensitive if self._is_sensitive(name) else target.weights

    def embedding_format(self) -> WeightFormat | None:
        """The format of the embedding where tokens are looked up in it."""
        return self._target.embedding

    def higher_precision_rows(self, name: str, rows: int) -> int:
        """How many of a matrix's first rows have the embedding's format nevertheless.

        Tokenizers number the most common tokens first: 8 bits for the first 32nd of a 4-bit LM head remove nearly as
        much of its loss as for the first sixteenth, which causes half of it.
        """
        weight_format, embedding = self.format_of(name), self._target.embedding
        if name not in LM_HEAD_TABLES or weight_format is None or embedding is None:
            return 0
        if weight_format.bits >= embedding.bits:
            return 0
        file = file_of(self._checkpoint)
        is_absent = name == LM_HEAD and file.config.tie_word_embeddings  # a derived checkpoint may be untied
        in_file = None if is_absent else file.block_format(name)
        keeps_blocks = in_file is not None and in_file.bits == weight_format.bits
        return 0 if keeps_blocks else rows // 32

    def fusion_key(self, name: str) -> object:
        """Equal for matrices that can be fused into one."""
        weight_format = self.format_of(name)
        return None if weight_format is None else (weight_format, self._checkpoint.block_format(name))

    def _is_sensitive(self, name: str) -> bool:
        if self._target.higher_precision is not None:
            return name in self._target.higher_precision
        found = LAYER.fullmatch(name)
        if found is None:
            return False
        layer, kind, layers = int(found[1]), found[2], self._checkpoint.config.num_hidden_layers
        eighth = layers // 8
        at_an_end = layer < eighth or layer >= layers - eighth
        return kind == "v_proj" or (kind == "down_proj" and at_an_end)
