"""Quantises a checkpoint's matrices for a target, one at a time; knows no graph and no byte layout."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.weights.blocks import BlockFormat, BlockQuantized
from megrez.calibration.weights.fitted_search import FittedSearch
from megrez.calibration.weights.nearest import quantize_nearest
from megrez.calibration.weights.offsets import fold_offsets, folded_columns
from megrez.calibration.weights.ranges import AbsMax
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.graph.weights import stack
from megrez.engines.weight_formats import WeightFormat

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixPlan:
    """How one matrix [n, k] will be stored.

    first: the index of its first row in the stacked sources. keeps_blocks: the checkpoint's stored blocks are kept,
    code for code. folded: their offsets are k's last columns, which multiply the means of x over each block: the input
    is [x, means] instead of x. nested: see WeightFormat. per_channel: a block is a whole row.
    """

    sources: tuple[str, ...]
    n: int
    k: int
    bits: int
    block: int
    zero_points: bool
    keeps_blocks: bool
    folded: bool
    floating: bool = False
    nested: bool = False
    per_channel: bool = False
    first: int = 0

    @property
    def blocks(self) -> int:
        return -(-self.k // self.block)

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.n)

    @property
    def weight_format(self) -> WeightFormat:
        return WeightFormat(
            bits=self.bits,
            block=self.block,
            symmetric=not self.zero_points,
            floating=self.floating,
            nested=self.nested,
        )


class Quantizer:
    """Plans matrices without reading them, then quantises them; caches only the last.

    The codes, scales and zero points of one matrix are read one after another.
    dequantize_linear: as GPUs need it, scales are positive, and stored blocks are kept only in exactly the target's
    format; otherwise, blocks of other sizes and zero points are kept too.
    """

    def __init__(self, checkpoint: Checkpoint, *, dequantize_linear: bool = False) -> None:
        self.checkpoint, self.dequantize_linear = checkpoint, dequantize_linear
        self._last: tuple[MatrixPlan, BlockQuantized] | None = None

    def plan(self, sources: tuple[str, ...], n: int, k: int, weight_format: WeightFormat) -> MatrixPlan:
        """Keeps the stored blocks where all `sources` have the same with as many bits, else `weight_format` fitted."""
        fitted = block_format_of(self.fitted(weight_format, k), k)
        formats = {self.checkpoint.block_format(name) for name in sources}
        stored = formats.pop()
        keeps_blocks = not formats and stored is not None and self._fits(stored, fitted)
        block_format = stored if keeps_blocks and stored is not None else fitted
        return MatrixPlan(
            sources=sources,
            n=n,
            k=folded_columns(k, block_format.block) if block_format.offsets else k,
            bits=block_format.bits,
            block=block_format.block,
            zero_points=block_format.zero_points,
            keeps_blocks=keeps_blocks,
            folded=block_format.offsets,
            floating=block_format.floating,
            nested=weight_format.nested,
            per_channel=weight_format.block is None,
        )

    def fitted(self, weight_format: WeightFormat, columns: int) -> WeightFormat:
        """`weight_format` with the block size that stores rows of `columns` in the fewest bits, where it may vary."""
        return weight_format if self.dequantize_linear else weight_format.fitted(columns)

    def _fits(self, stored: BlockFormat, fitted: BlockFormat) -> bool:
        if self.dequantize_linear:
            return stored == fitted
        return (stored.bits, stored.floating) == (fitted.bits, fitted.floating)

    def __call__(self, plan: MatrixPlan) -> BlockQuantized:
        if self._last is None or self._last[0] != plan:
            self._last = None  # free the previous matrix first
            self._last = (plan, self._stored_blocks(plan) if plan.keeps_blocks else self._quantize(plan))
        return self._last[1]

    def _quantize(self, plan: MatrixPlan) -> BlockQuantized:
        matrix = stack(self.checkpoint, plan.sources)[plan.rows]
        per_channel = self.dequantize_linear and plan.per_channel and plan.bits == 8
        absmax = per_channel or plan.floating or plan.nested
        return quantize_nearest(
            matrix, plan.weight_format, AbsMax() if absmax else FittedSearch(positive=self.dequantize_linear)
        )

    def _stored_blocks(self, plan: MatrixPlan) -> BlockQuantized:
        parts = [part for name in plan.sources if (part := self.checkpoint.blocks(name)) is not None]
        assert len(parts) == len(plan.sources)
        matrix = BlockQuantized(
            bits=plan.bits,
            block=plan.block,
            codes=np.concatenate([part.codes for part in parts])[plan.rows],
            scales=np.concatenate([part.scales for part in parts])[plan.rows],
            zero_points=_concatenate([part.zero_points for part in parts if part.zero_points is not None], plan.rows),
            offsets=_concatenate([part.offsets for part in parts if part.offsets is not None], plan.rows),
            floating=plan.floating,
        )
        return fold_offsets(matrix) if plan.folded else matrix


def block_format_of(weight_format: WeightFormat, columns: int) -> BlockFormat:
    """The blocks of a matrix of `columns` that is quantised to `weight_format`."""
    return BlockFormat(
        bits=weight_format.bits,
        block=weight_format.block or columns,
        zero_points=not weight_format.symmetric,
        offsets=False,
        floating=weight_format.floating,
    )


def _concatenate(parts: list[NDArray[T]], rows: slice) -> NDArray[T] | None:
    return np.concatenate(parts)[rows] if parts else None
