"""Checkpoint matrices in a target's weight format, one at a time; knows no graph and no byte layout."""

from megrez.calibration.blocks import BlockQuantized
from megrez.calibration.rtn import quantize_rtn
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.weights import stack
from megrez.engines.targets import WeightFormat


class Quantizer:
    """Quantises the stacked matrices of `sources`, or carries over blocks that the checkpoint already has.

    Keeps the last result only: the codes, scales and zero points of one matrix are asked for one after another.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._last: tuple[tuple[str, ...], WeightFormat, BlockQuantized] | None = None

    def __call__(self, sources: tuple[str, ...], form: WeightFormat) -> BlockQuantized:
        if self._last is None or self._last[:2] != (sources, form):
            self._last = None  # free the previous matrix before the next is made
            self._last = (sources, form, self._quantize(sources, form))
        return self._last[2]

    def form_of(self, sources: tuple[str, ...], wanted: WeightFormat) -> WeightFormat:
        """The format the matrix will have: the checkpoint's own where it has blocks of as many bits, else `wanted`."""
        return wanted

    def _quantize(self, sources: tuple[str, ...], form: WeightFormat) -> BlockQuantized:
        matrix = stack(self.checkpoint, sources)
        return quantize_rtn(matrix, bits=form.bits, block=form.block, symmetric=form.symmetric)
