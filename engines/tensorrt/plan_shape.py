"""What an engine was built for, and the memory that a session of it takes; knows no device."""

import math
from dataclasses import dataclass

import numpy as np

from megrez.runtime.errors import BundleError
from megrez.runtime.manifest import Manifest

HALF_BYTES = 2
# TensorRT takes tensors at multiples of so many bytes.
ALIGNMENT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanShape:
    """What an engine was built for. slots, chunk, rows: the most of each in a step. capacity: of its caches."""

    slots: int
    chunk: int
    rows: int
    layers: int
    kv_heads: int
    capacity: int
    head_dim: int
    vocab_size: int

    @property
    def cache_names(self) -> list[str]:
        return [f"{layer}.{kind}" for layer in range(self.layers) for kind in ("key", "value")]

    def cache_bytes(self, slots: int) -> int:
        """Of one key or value cache, float16 [slots, kv_heads, capacity, head_dim]."""
        return HALF_BYTES * slots * self.kv_heads * self.capacity * self.head_dim

    @property
    def row_alignment(self) -> int:
        """Every so many rows, a cache's row lies where TensorRT takes a tensor."""
        return ALIGNMENT // math.gcd(ALIGNMENT, self.cache_bytes(1))


def plan_shape(manifest: Manifest) -> PlanShape:
    """Raises BundleError for a manifest without a device."""
    device, architecture = manifest.device, manifest.architecture
    if device is None:
        raise BundleError("manifest.json tells no device of its engine: compile the bundle again")
    return PlanShape(
        slots=device.slots,
        chunk=device.chunk,
        rows=device.rows,
        layers=architecture.num_hidden_layers,
        kv_heads=architecture.num_key_value_heads,
        capacity=manifest.context_length,
        head_dim=architecture.head_dim,
        vocab_size=architecture.vocab_size,
    )


def buffer_sizes(shape: PlanShape, slots: int) -> dict[str, int]:
    """Bytes of the inputs and logits of a session, by name."""
    index = np.dtype(np.int64).itemsize
    return {
        "input_ids": index * slots * shape.chunk,
        "write_indices": index * slots,
        "logits_index": index * shape.rows,
        "logits": HALF_BYTES * shape.rows * shape.vocab_size,
    }


def spare_bytes(shape: PlanShape, slots: int) -> int:
    """Of the row that a swap of two others goes through."""
    return shape.cache_bytes(1) if slots > 1 else 0


def session_bytes(shape: PlanShape, slots: int) -> int:
    """Device memory for caches, inputs and logits; the engine's own comes on top."""
    caches = len(shape.cache_names) * shape.cache_bytes(slots)
    return caches + spare_bytes(shape, slots) + sum(buffer_sizes(shape, slots).values())
