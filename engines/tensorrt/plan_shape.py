"""The limits of a built engine, and the device memory of a session of it; independent of devices."""

import math
from dataclasses import dataclass

import numpy as np

from megrez.runtime.errors import BundleError
from megrez.runtime.manifest import Manifest

HALF_BYTES = 2
# TensorRT needs tensor addresses that are multiples of this many bytes.
ALIGNMENT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanShape:
    """The limits of a built engine.

    slots, chunk, max_logits: most sequences, tokens per sequence, and tokens with logits of a step.
    capacity: tokens per cache entry.
    """

    slots: int
    chunk: int
    max_logits: int
    layers: int
    kv_heads: int
    capacity: int
    head_dim: int
    vocab_size: int

    @property
    def cache_names(self) -> list[str]:
        return [f"{layer}.{kind}" for layer in range(self.layers) for kind in ("key", "value")]

    def cache_bytes(self, slots: int) -> int:
        """Bytes of one key or value cache, float16 [slots, kv_heads, capacity, head_dim]."""
        return HALF_BYTES * slots * self.kv_heads * self.capacity * self.head_dim

    @property
    def entry_alignment(self) -> int:
        """Only a cache entry whose index is a multiple of this has an address aligned for TensorRT."""
        return ALIGNMENT // math.gcd(ALIGNMENT, self.cache_bytes(1))


def plan_shape(manifest: Manifest) -> PlanShape:
    """The limits that the manifest states; raises BundleError if it states no device."""
    device, architecture = manifest.device, manifest.architecture
    if device is None:
        raise BundleError("manifest.json states no device for its engine: compile the bundle again")
    return PlanShape(
        slots=device.slots,
        chunk=device.chunk,
        max_logits=device.max_logits,
        layers=architecture.num_hidden_layers,
        kv_heads=architecture.num_key_value_heads,
        capacity=manifest.context_length,
        head_dim=architecture.head_dim,
        vocab_size=architecture.vocab_size,
    )


def buffer_sizes(shape: PlanShape, slots: int) -> dict[str, int]:
    """Bytes of a session's input and logits buffers, by name."""
    index = np.dtype(np.int64).itemsize
    return {
        "input_ids": index * slots * shape.chunk,
        "write_indices": index * slots,
        "logits_index": index * shape.max_logits,
        "logits": HALF_BYTES * shape.max_logits * shape.vocab_size,
    }


def spare_bytes(shape: PlanShape, slots: int) -> int:
    """Bytes of the temporary buffer of swaps: one cache entry."""
    return shape.cache_bytes(1) if slots > 1 else 0


def session_bytes(shape: PlanShape, slots: int) -> int:
    """Device memory for caches, inputs and logits, without the engine's own."""
    caches = len(shape.cache_names) * shape.cache_bytes(slots)
    return caches + spare_bytes(shape, slots) + sum(buffer_sizes(shape, slots).values())
