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
    """A key and a value per layer, each [slots, kv_heads, capacity, head_dim] of `dtype`, and the scales of int8 ones,
    [slots, kv_heads, capacity, 1] in float32. float_dtype: of all else, such as the logits.
    """

    layers: int
    slots: int
    kv_heads: int
    capacity: int
    head_dim: int
    dtype: np.dtype[Any]
    float_dtype: np.dtype[Any]

    @property
    def kinds(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """The shapes and data types of a layer's caches, by name."""
        tokens = self.slots, self.kv_heads, self.capacity
        found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        found |= dict.fromkeys(("key", "value"), ((*tokens, self.head_dim), self.dtype))
        if self.dtype == np.int8:
            found |= dict.fromkeys(("key_scale", "value_scale"), ((*tokens, 1), np.dtype(np.float32)))
        return found

    @property
    def all(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """The same of all layers, as "LAYER.KIND"."""
        return {f"{layer}.{kind}": one for layer in range(self.layers) for kind, one in self.kinds.items()}

    @property
    def nbytes(self) -> int:
        return sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in self.all.values())


def cache_shape(bundle: Bundle, slots: int, capacity: int | None) -> CacheShape:
    """The caches of `slots` sequences of up to `capacity` tokens each, by default the bundle's context length.

    Raises UsageError for less than one slot, and for a capacity beyond the context length.
    """
    manifest = bundle.manifest
    dtype = np.dtype(manifest.kv_cache.dtype)
    return CacheShape(
        layers=manifest.architecture.num_hidden_layers,
        slots=choose_slots(slots),
        kv_heads=manifest.architecture.num_key_value_heads,
        capacity=choose_capacity(capacity, manifest.context_length, bundle.path),
        head_dim=manifest.architecture.head_dim,
        dtype=dtype,
        # Graphs on CPUs compute in float32; those for GPUs and those of other engines in the data type of their caches.
        float_dtype=np.dtype(np.float32) if manifest.engine == "ort" else dtype,
    )


class Caches:
    """The buffers by name, each [slots, kv_heads, capacity, …]."""

    def __init__(self, shape: CacheShape, place: Place) -> None:
        self._place = place
        self.buffers = {name: place.zeros(*one) for name, one in shape.all.items()}
        # The temporary buffers of swaps, for one cache at a time, by the kind of cache.
        self._spares: dict[str, Buffer] = {}
        if shape.slots > 1:
            self._spares = {kind: place.zeros((1, *one[1:]), dtype) for kind, (one, dtype) in shape.kinds.items()}

    def swap(self, swaps: list[Swap]) -> None:
        for name, buffer in self.buffers.items():
            for swap in swaps:
                self._swap(buffer, self._spares[name.partition(".")[2]], swap)
        self._place.synchronize()

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of one entry to another."""
        for buffer in self.buffers.values():
            self._place.copy_tokens(buffer.entries(source, 1), buffer.entries(target, 1), tokens)
        self._place.synchronize()

    def close(self) -> None:
        self.buffers.clear()
        self._spares.clear()

    def _swap(self, buffer: Buffer, spare: Buffer, swap: Swap) -> None:
        one, other = buffer.entries(swap.one, 1), buffer.entries(swap.other, 1)
        self._place.copy_tokens(one, spare, swap.tokens_of_one)
        self._place.copy_tokens(other, one, swap.tokens_of_other)
        self._place.copy_tokens(spare, other, swap.tokens_of_one)
