"""An engine with its KV cache on a device: buffers that never move, decoding replayed from CUDA graphs.

Knows the engine's inputs by name; knows no GPU, see megrez.engines.tensorrt.device.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.engines.tensorrt.device import Context, Device, Graph
from megrez.runtime.bundle import Bundle
from megrez.runtime.errors import BundleError, UsageError
from megrez.runtime.manifest import Manifest
from megrez.runtime.session import Lengths, Logits, Session, Tokens, check_room, choose_capacity

DECODE, PREFILL = 0, 1
HALF_BYTES = 2


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


def open_session(bundle: Bundle, *, threads: int | None, slots: int = 1, capacity: int | None = None) -> Session:
    """Open the bundle's engine on the GPU at hand; `threads` has no meaning there.

    Raises UsageError for more slots or room than it was built for, EngineError where the GPU, its memory or the
    library is not what the engine needs, MissingExtraError where there is no library.
    """
    shape = plan_shape(bundle.manifest)
    if slots > shape.slots:
        raise UsageError(
            f"{slots} sequences at once were asked for, the engine of {bundle.path} takes {shape.slots}: compile with "
            f"--batch {slots}"
        )
    room = choose_capacity(capacity, shape.capacity, bundle.path)
    from megrez.engines.tensorrt.cuda import open_device

    return TensorRtSession(open_device(bundle, session_bytes(shape, slots)), shape, slots=slots, capacity=room)


def session_bytes(shape: PlanShape, slots: int) -> int:
    """Device memory for caches, inputs and logits; the engine's own comes on top."""
    caches = len(shape.cache_names) * shape.cache_bytes(slots)
    return caches + sum(_buffer_sizes(shape, slots).values())


def _buffer_sizes(shape: PlanShape, slots: int) -> dict[str, int]:
    index = np.dtype(np.int64).itemsize
    return {
        "input_ids": index * slots * shape.chunk,
        "write_indices": index * slots,
        "logits_index": index * shape.rows,
        "logits": HALF_BYTES * shape.rows * shape.vocab_size,
    }


class TensorRtSession:
    """A Session. Both profiles read and write one set of buffers; a cache's update is bound to the cache itself."""

    def __init__(self, device: Device, shape: PlanShape, *, slots: int = 1, capacity: int | None = None) -> None:
        self.slots, self.capacity, self.vocab_size = slots, capacity or shape.capacity, shape.vocab_size
        self._device, self._shape = device, shape
        self._addresses = {name: device.allocate(size) for name, size in _buffer_sizes(shape, slots).items()}
        caches = {name: device.allocate(shape.cache_bytes(slots)) for name in shape.cache_names}
        self._contexts = [self._open(profile, caches) for profile in (DECODE, PREFILL)]
        self._graph: Graph | None = None
        self._may_record = True
        self._ids = device.pin((slots * shape.chunk,), np.int64)
        self._starts = device.pin((slots,), np.int64)
        self._rows = device.pin((shape.rows,), np.int64)
        self._logits = device.pin((shape.rows, shape.vocab_size), np.float16)

    def step(self, tokens: Tokens, lengths: Lengths, rows: Tokens) -> Logits:
        """See megrez.runtime.session.Session."""
        width = tokens.shape[1]
        check_room(lengths, width, self.capacity)
        wanted, order = np.unique(rows, return_inverse=True)
        slot, column = np.divmod(wanted, width)
        logits = np.empty((len(wanted), self.vocab_size), np.float32)
        for start, stop in self._pieces(width, column):
            here = np.flatnonzero((start <= column) & (column < stop))
            piece_rows = slot[here] * (stop - start) + column[here] - start
            logits[here] = self._run(tokens[:, start:stop], lengths + start, piece_rows)
        return logits[order.reshape(-1)]

    def close(self) -> None:
        """See megrez.runtime.session.Session."""
        self._graph = None
        self._contexts.clear()
        self._device.close()

    def _open(self, profile: int, caches: dict[str, int]) -> Context:
        context = self._device.open_context(profile)
        for name, address in self._addresses.items():
            context.bind(name, address)
        for name, address in caches.items():
            context.bind(f"past_key_values.{name}", address)
            context.bind(f"present.{name}", address)
            fixed = (self._shape.kv_heads, self._shape.capacity, self._shape.head_dim)
            context.set_shape(f"past_key_values.{name}", (self.slots, *fixed))
        context.set_shape("write_indices", (self.slots,))
        return context

    def _pieces(self, width: int, columns: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """Ranges of columns that one step each can take, for their tokens and for the logits wanted of them."""
        start = 0
        while start < width:
            stop = min(start + self._shape.chunk, width)
            while np.count_nonzero((start <= columns) & (columns < stop)) > self._shape.rows:
                stop -= 1
            yield start, stop
            start = stop

    def _run(self, tokens: Tokens, lengths: Lengths, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """The logits [len(rows), vocab_size] of one step. Decoding has one shape, with a row for every slot; the engine
        gives one row at least.
        """
        decodes = tokens.shape[1] == 1
        count = self.slots if decodes else max(len(rows), 1)
        self._ids[: tokens.size] = tokens.reshape(-1)
        self._starts[:] = lengths
        self._rows[:count] = 0
        self._rows[: len(rows)] = rows
        for name, array in (
            ("input_ids", self._ids[: tokens.size]),
            ("write_indices", self._starts),
            ("logits_index", self._rows[:count]),
        ):
            self._device.upload(self._addresses[name], array)
        if decodes:
            self._decode()
        else:
            self._enqueue(PREFILL, tokens.shape[1], count)
        found = self._logits[: len(rows)]
        if len(rows):
            self._device.download(self._addresses["logits"], found)
        self._device.synchronize()
        return found

    def _decode(self) -> None:
        """The first step warms the engine up and is recorded, later ones replay it. Recording is tried once."""
        if self._graph is not None:
            self._graph.launch()
            return
        self._enqueue(DECODE, 1, self.slots)
        if self._may_record:
            self._device.synchronize()
            self._graph, self._may_record = self._contexts[DECODE].capture(), False

    def _enqueue(self, profile: int, width: int, rows: int) -> None:
        context = self._contexts[profile]
        context.set_shape("input_ids", (self.slots, width))
        context.set_shape("logits_index", (rows,))
        context.enqueue()
