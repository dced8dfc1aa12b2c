"""Ranges of activations, seen piece by piece: the magnitude that the largest number of a format stands for.

Knows no layer, model or text. The data may come in any pieces, and none of it is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.data_types import NumberFormat
from megrez.calibration.activations.histogram import MagnitudeHistogram
from megrez.calibration.activations.thresholds import Counts, Float64, least_divergence, least_squared_error, percentile
from megrez.runtime.errors import CheckpointError, UsageError

Float32 = NDArray[np.float32]

BINS = 2048
# Ranges that MeanSquaredError tries, as shares of the largest magnitude.
SHARES = tuple(percent / 100 for percent in range(100, 0, -1))
# Channels whose ranges are searched at once: each temporary of theirs takes 1 MB.
ROWS = 64


class Granularity(Enum):
    """Which values share a range."""

    TENSOR = "tensor"
    CHANNEL = "channel"


@dataclass(frozen=True, slots=True)
class TokenBlock:
    """Each `tokens` consecutive tokens share a range, counted on from update to update; the last may have fewer."""

    tokens: int


class Observer(Protocol):
    """Watches one tensor. A scale is amax() divided by the largest number of the format."""

    def update(self, x: Float32) -> None:
        """See [tokens, channels]. Raises CheckpointError when a value is not finite; then nothing is recorded."""
        ...

    def amax(self) -> Float32:
        """After at least one update: shape () per tensor, [channels] per channel, [blocks] per block of tokens.

        Zero where nothing but zeros was seen: the caller replaces a scale of zero, by 1 say.
        """
        ...


class AbsMax:
    """The largest magnitude itself. Per block of tokens, one number for each block is kept."""

    def __init__(self, granularity: Granularity | TokenBlock) -> None:
        self._granularity = granularity
        self._found: list[Float32] = []
        self._unfinished = np.empty(0, np.float32)  # of each token of the last block

    def update(self, x: Float32) -> None:
        magnitudes = _magnitudes(x)
        if isinstance(self._granularity, TokenBlock):
            self._add_tokens(magnitudes.max(axis=1, initial=0), self._granularity.tokens)
        else:
            self._found = [np.max([magnitudes.max(axis=0, initial=0), *self._found], axis=0)]

    def amax(self) -> Float32:
        last = [self._unfinished.max(keepdims=True)] if self._unfinished.size else []
        assert self._found or last, "amax() before update()"
        found = np.concatenate([*self._found, *last])
        return np.asarray(found.max(initial=0)) if self._granularity is Granularity.TENSOR else found

    def _add_tokens(self, magnitudes: Float32, block: int) -> None:
        tokens = np.concatenate([self._unfinished, magnitudes])
        whole = len(tokens) // block * block
        if whole:
            self._found.append(tokens[:whole].reshape(-1, block).max(axis=1))
        self._unfinished = tokens[whole:]


class _FromHistogram:
    """Keeps bins * 8 bytes, per channel as many for each; `choose` is one of thresholds.py."""

    def __init__(
        self, choose: Callable[[Counts, Float64, Float32], Float32], granularity: Granularity, bins: int
    ) -> None:
        self._choose = choose
        self._granularity = granularity
        self._bins = bins
        self._histogram: MagnitudeHistogram | None = None

    def update(self, x: Float32) -> None:
        magnitudes = _magnitudes(x)
        if self._granularity is Granularity.TENSOR:
            magnitudes = magnitudes.reshape(-1, 1)
        if self._histogram is None:
            self._histogram = MagnitudeHistogram(magnitudes.shape[1], self._bins)
        self._histogram.add(magnitudes)

    def amax(self) -> Float32:
        seen = self._histogram
        assert seen is not None, "amax() before update()"
        widths = seen.widths()
        parts = [slice(start, start + ROWS) for start in range(0, len(widths), ROWS)]
        chosen = np.concatenate([self._choose(seen.counts[part], widths[part], seen.largest[part]) for part in parts])
        return chosen.reshape(()) if self._granularity is Granularity.TENSOR else chosen


class Percentile(_FromHistogram):
    """The magnitude that `percent` of the values do not exceed, rounded up to the next edge of a bin.

    Raises UsageError for a percentage that is not above 0 and at most 100.
    """

    def __init__(self, percent: float, granularity: Granularity, *, bins: int = BINS) -> None:
        if not 0 < percent <= 100:
            raise UsageError(f"the percentile of activations is {percent:g}: give more than 0 and at most 100")
        super().__init__(partial(percentile, percent=percent), granularity, bins)


class MeanSquaredError(_FromHistogram):
    """The range whose rounding and clipping errors have the least mean square, among `shares` of the largest."""

    def __init__(
        self,
        number_format: NumberFormat,
        granularity: Granularity,
        *,
        bins: int = BINS,
        shares: Sequence[float] = SHARES,
    ) -> None:
        super().__init__(partial(least_squared_error, number_format=number_format, shares=shares), granularity, bins)


class Entropy(_FromHistogram):
    """The range that loses the least information, as TensorRT's entropy calibration; see thresholds.least_divergence.

    Takes time with the square of `bins`: per channel, use 256.
    """

    def __init__(self, number_format: NumberFormat, granularity: Granularity, *, bins: int = BINS) -> None:
        super().__init__(partial(least_divergence, number_format=number_format), granularity, bins)


def _magnitudes(x: Float32) -> Float32:
    magnitudes = np.abs(x)
    if not np.isfinite(magnitudes.max(initial=0)):
        raise CheckpointError("the activations hold a value that is not finite: repair the checkpoint")
    return magnitudes
