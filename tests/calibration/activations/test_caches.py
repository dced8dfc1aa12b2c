"""Scales of caches beside a search over all that was cached, in float64."""

import numpy as np
import pytest
from numpy.typing import NDArray

from megrez.calibration.activations.caches import CacheObservers

RANDOM = np.random.default_rng(0)
KEYS = RANDOM.standard_t(3, (400, 16)).astype(np.float32)
VALUES = (0.01 * RANDOM.standard_normal((400, 16))).astype(np.float32)


def observed(keys: NDArray[np.float32], values: NDArray[np.float32], pieces: int = 1) -> CacheObservers:
    caches = CacheObservers()
    for key, value in zip(np.array_split(keys, pieces), np.array_split(values, pieces), strict=True):
        caches.update("key", key)
        caches.update("value", value)
    return caches


def int8_error(x: NDArray[np.float32], scale: float) -> float:
    exact = x.astype(np.float64)
    return float(((np.clip(np.rint(exact / scale), -127, 127) * scale - exact) ** 2).sum())


def test_the_scales_of_each_kind() -> None:
    found = observed(KEYS, VALUES).scales("model.layers.7.")
    assert list(found) == ["model.layers.7.key", "model.layers.7.value"]
    for scales, x in zip(found.values(), (KEYS, VALUES), strict=True):
        largest = float(np.abs(x).max())
        assert scales.fp8 == pytest.approx(largest / 448, rel=1e-6)
        least = min(int8_error(x, largest * percent / 100 / 127) for percent in range(1, 101))
        assert int8_error(x, scales.int8) < 1.05 * least < int8_error(x, largest / 127) * 1.05
    # Heavy tails are clipped.
    assert found["model.layers.7.key"].int8 < 0.97 * np.abs(KEYS).max() / 127


def test_pieces_change_nothing() -> None:
    assert observed(KEYS, VALUES, pieces=7).scales("") == observed(KEYS, VALUES).scales("")


def test_zeros_have_the_scale_1() -> None:
    found = observed(np.zeros_like(KEYS), VALUES).scales("")
    assert (found["key"].int8, found["key"].fp8) == (1.0, 1.0)
    assert found["value"].fp8 < 1e-3
