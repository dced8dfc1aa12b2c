"""Checkpoint matrices as a target stores them, one at a time; knows no graph and no byte layout."""

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

    first: which of the stacked sources' rows is its first. carried: the checkpoint's own blocks are kept, code for
    code. folded: their offsets are k's last columns, which multiply the means of x over each block: the product takes
    [x, means] instead of x. nested: see WeightFormat. per_channel: a block is a whole row.
    """

    sources: tuple[str, ...]
    n: int
    k: int
    bits: int
    block: int
    zero_points: bool
    carried: bool
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
    """Plans matrices without reading them, then makes them; keeps the last only.

    The codes, scales and zero points of one matrix are asked for one after another.
    exact: as standard DequantizeLinear nodes for GPUs want it, made scales are positive and stored blocks are carried
    only in the very form wanted; else those of other sizes and with other zero points are too.
    """

    def __init__(self, checkpoint: Checkpoint, *, exact: bool = False) -> None:
        self.checkpoint, self.exact = checkpoint, exact
        self._last: tuple[MatrixPlan, BlockQuantized] | None = None

    def plan(self, sources: tuple[str, ...], n: int, k: int, wanted: WeightFormat) -> MatrixPlan:
        """The checkpoint's own blocks where all `sources` have the same, of the bits wanted, else `wanted` fitted."""
        asked = block_format_of(self.fitted(wanted, k), k)
        own = {self.checkpoint.block_format(name) for name in sources}
        stored = own.pop()
        carried = not own and stored is not None and self._fits(stored, asked)
        form = stored if carried and stored is not None else asked
        return MatrixPlan(
            sources=sources,
            n=n,
            k=folded_columns(k, form.block) if form.offsets else k,
            bits=form.bits,
            block=form.block,
            zero_points=form.zero_points,
            carried=carried,
            folded=form.offsets,
            floating=form.floating,
            nested=wanted.nested,
            per_channel=wanted.block is None,
        )

    def fitted(self, form: WeightFormat, columns: int) -> WeightFormat:
        """`form` as a matrix of so many columns gets it: with the least padding, or for some graphs with none."""
        return form if self.exact else form.fitted(columns)

    def _fits(self, stored: BlockFormat, asked: BlockFormat) -> bool:
        return stored == asked if self.exact else (stored.bits, stored.floating) == (asked.bits, asked.floating)

    def __call__(self, plan: MatrixPlan) -> BlockQuantized:
        if self._last is None or self._last[0] != plan:
            self._last = None  # free the previous matrix before the next is made
            self._last = (plan, self._carry(plan) if plan.carried else self._quantize(plan))
        return self._last[1]

    def _quantize(self, plan: MatrixPlan) -> BlockQuantized:
        matrix = stack(self.checkpoint, plan.sources)[plan.rows]
        per_channel = self.exact and plan.per_channel and plan.bits == 8
        absmax = per_channel or plan.floating or plan.nested
        return quantize_nearest(matrix, plan.weight_format, AbsMax() if absmax else FittedSearch(positive=self.exact))

    def _carry(self, plan: MatrixPlan) -> BlockQuantized:
        parts = [part for name in plan.sources if (part := self.checkpoint.blocks(name)) is not None]
        assert len(parts) == len(plan.sources)
        whole = BlockQuantized(
            bits=plan.bits,
            block=plan.block,
            codes=np.concatenate([part.codes for part in parts])[plan.rows],
            scales=np.concatenate([part.scales for part in parts])[plan.rows],
            zero_points=_concatenate([part.zero_points for part in parts if part.zero_points is not None], plan.rows),
            offsets=_concatenate([part.offsets for part in parts if part.offsets is not None], plan.rows),
            floating=plan.floating,
        )
        return fold_offsets(whole) if plan.folded else whole


def block_format_of(form: WeightFormat, columns: int) -> BlockFormat:
    """The blocks of a matrix of so many columns that is rounded to `form`."""
    return BlockFormat(
        bits=form.bits,
        block=form.block or columns,
        zero_points=not form.symmetric,
        offsets=False,
        floating=form.floating,
    )


def _concatenate(parts: list[NDArray[T]], rows: slice) -> NDArray[T] | None:
    return np.concatenate(parts)[rows] if parts else None
