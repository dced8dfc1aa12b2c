"""Scales of cached keys and values, for engines that cache them in 8 bits; knows no attention."""

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.inputs import NUMBER_FORMATS
from megrez.calibration.activations.observers import AbsMax, Granularity, MeanSquaredError, Observer
from megrez.calibration.recipe import CacheScales

Float32 = NDArray[np.float32]
KINDS = ("key", "value")


class CacheObservers:
    """Ranges of a layer's cached keys (rotated, as they are stored) and values, for engines with smaller caches."""

    def __init__(self) -> None:
        self._observers: dict[tuple[str, str], Observer] = {}
        for kind in KINDS:
            self._observers[kind, "int8"] = MeanSquaredError(NUMBER_FORMATS["int8"], Granularity.TENSOR)
            # E4M3 is as exact for small numbers as for large ones: clipping would gain nothing.
            self._observers[kind, "fp8"] = AbsMax(Granularity.TENSOR)

    def update(self, kind: str, x: Float32) -> None:
        """See megrez.calibration.reference.decoder.Watch."""
        for (seen, _), observer in self._observers.items():
            if seen == kind:
                observer.update(x)

    def scales(self, prefix: str) -> dict[str, CacheScales]:
        return {
            prefix + kind: CacheScales(
                int8=self._scale(kind, "int8"),
                fp8=self._scale(kind, "fp8"),
            )
            for kind in KINDS
        }

    def _scale(self, kind: str, inputs: str) -> float:
        return float(self._observers[kind, inputs].amax()) / NUMBER_FORMATS[inputs].largest or 1.0
