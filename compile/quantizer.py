"""Checkpoint matrices as a target stores them, one at a time; knows no graph and no byte layout."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.blocks import BlockFormat, BlockQuantized
from megrez.calibration.offsets import fold_offsets, folded_columns
from megrez.calibration.rtn import quantize_rtn
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.weights import stack
from megrez.engines.targets import WeightFormat

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixPlan:
    """How one matrix [n, k] will be stored.

    carried: the checkpoint's own blocks are kept, code for code. folded: their offsets are k's last columns, which
    multiply the means of x over each block: the product takes [x, means] instead of x.
    """

    sources: tuple[str, ...]
    n: int
    k: int
    bits: int
    block: int
    zero_points: bool
    carried: bool
    folded: bool

    @property
    def blocks(self) -> int:
        return -(-self.k // self.block)


class Quantizer:
    """Plans matrices without reading them, then makes them; keeps the last only.

    The codes, scales and zero points of one matrix are asked for one after another.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._last: tuple[MatrixPlan, BlockQuantized] | None = None

    def plan(self, sources: tuple[str, ...], n: int, k: int, wanted: WeightFormat) -> MatrixPlan:
        """The checkpoint's own blocks where all of `sources` have the same, of the bits wanted; else `wanted`."""
        own = {self.checkpoint.block_format(name) for name in sources}
        form = own.pop()
        if own or form is None or form.bits != wanted.bits:
            form = BlockFormat(bits=wanted.bits, block=wanted.block, zero_points=not wanted.symmetric, offsets=False)
            carried = False
        else:
            carried = True
        return MatrixPlan(
            sources=sources,
            n=n,
            k=folded_columns(k, form.block) if form.offsets else k,
            bits=form.bits,
            block=form.block,
            zero_points=form.zero_points,
            carried=carried,
            folded=form.offsets,
        )

    def __call__(self, plan: MatrixPlan) -> BlockQuantized:
        if self._last is None or self._last[0] != plan:
            self._last = None  # free the previous matrix before the next is made
            self._last = (plan, self._carry(plan) if plan.carried else self._quantize(plan))
        return self._last[1]

    def _quantize(self, plan: MatrixPlan) -> BlockQuantized:
        matrix = stack(self.checkpoint, plan.sources)
        return quantize_rtn(matrix, bits=plan.bits, block=plan.block, symmetric=not plan.zero_points)

    def _carry(self, plan: MatrixPlan) -> BlockQuantized:
        parts = [part for name in plan.sources if (part := self.checkpoint.blocks(name)) is not None]
        assert len(parts) == len(plan.sources)
        whole = BlockQuantized(
            bits=plan.bits,
            block=plan.block,
            codes=np.concatenate([part.codes for part in parts]),
            scales=np.concatenate([part.scales for part in parts]),
            zero_points=_concatenate([part.zero_points for part in parts if part.zero_points is not None]),
            offsets=_concatenate([part.offsets for part in parts if part.offsets is not None]),
        )
        return fold_offsets(whole) if plan.folded else whole


def _concatenate(parts: list[NDArray[T]]) -> NDArray[T] | None:
    return np.concatenate(parts) if parts else None
