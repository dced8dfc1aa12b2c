"""The KV caches of a session in ONNX Runtime, and copies between their entries (indices of the batch dimension)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from megrez.engines.ort.place import Buffer, Place
from megrez.engines.slot_order import Swap
from megrez.runtime.bundle import Bundle
from megrez.runtime.session import choose_capacity, choose_slots


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """A key and a value per layer, each [slots, kv_heads, capacity, head_dim] of `dtype`, as are the logits."""

    layers: int
    slots: int
    kv_heads: int
    capacity: int
    head_dim: int
    dtype: np.dtype[Any]

    @property
    def names(self) -> list[str]:
        return [f"{layer}.{kind}" for layer in range(self.layers) for kind in ("key", "value")]

    @property
    def one(self) -> tuple[int, ...]:
        return self.slots, self.kv_heads, self.capacity, self.head_dim

    @property
    def nbytes(self) -> int:
        return len(self.names) * int(np.prod(self.one)) * self.dtype.itemsize


def cache_shape(bundle: Bundle, slots: int, capacity: int | None) -> CacheShape:
    """The caches of `slots` sequences of up to `capacity` tokens each, by default the bundle's context length.

    Raises UsageError for less than one slot, and for a capacity beyond the context length.
    """
    manifest = bundle.manifest
    return CacheShape(
        layers=manifest.architecture.num_hidden_layers,
        slots=choose_slots(slots),
        kv_heads=manifest.architecture.num_key_value_heads,
        capacity=choose_capacity(capacity, manifest.context_length, bundle.path),
        head_dim=manifest.architecture.head_dim,
        dtype=np.dtype(manifest.kv_cache.dtype),
    )


class Caches:
    """The buffers by name, each [slots, kv_heads, capacity, head_dim]."""

    def __init__(self, shape: CacheShape, place: Place) -> None:
        self._place = place
        self.buffers = {name: place.zeros(shape.one, shape.dtype) for name in shape.names}
        # The temporary buffer of swaps, for one cache at a time.
        self._spare = place.zeros((1, *shape.one[1:]), shape.dtype) if shape.slots > 1 else None

    def swap(self, swaps: list[Swap]) -> None:
        for buffer in self.buffers.values():
            for swap in swaps:
                self._swap(buffer, swap)
        self._place.synchronize()

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of one entry to another."""
        for buffer in self.buffers.values():
            self._place.copy_tokens(buffer.entries(source, 1), buffer.entries(target, 1), tokens)
        self._place.synchronize()

    def close(self) -> None:
        self.buffers.clear()
        self._spare = None

    def _swap(self, buffer: Buffer, swap: Swap) -> None:
        assert self._spare is not None, "a single entry cannot be swapped"
        one, other = buffer.entries(swap.one, 1), buffer.entries(swap.other, 1)
        self._place.copy_tokens(one, self._spare, swap.tokens_of_one)
        self._place.copy_tokens(other, one, swap.tokens_of_other)
        self._place.copy_tokens(self._spare, other, swap.tokens_of_one)
