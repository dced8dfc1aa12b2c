"""A TensorRT engine and its KV cache as a session: buffers that never move, decode steps replayed from CUDA graphs.

Knows the engine's inputs by name; independent of CUDA, see megrez.engines.tensorrt.device.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megrez.engines.arrange import Group, arrange, run_groups
from megrez.engines.slot_order import SlotOrder
from megrez.engines.tensorrt.caches import Caches
from megrez.engines.tensorrt.device import DECODE, PREFILL, Context, Device, Graph
from megrez.engines.tensorrt.plan_shape import PlanShape, buffer_sizes, plan_shape, session_bytes
from megrez.runtime.batch import Batch, Lengths, Tokens, check_copy
from megrez.runtime.bundle import Bundle
from megrez.runtime.errors import UsageError
from megrez.runtime.session import Logits, Session, choose_capacity, choose_slots

# Most CUDA graphs of decode steps: one per first cache entry and number of entries; each takes memory.
MAX_GRAPHS = 64


def open_session(bundle: Bundle, *, threads: int | None, slots: int = 1, capacity: int | None = None) -> Session:
    """Open the bundle's engine on this machine's GPU; `threads` is ignored.

    Raises UsageError for more slots or capacity than it was built for, EngineError if the GPU, its memory or the
    library does not fit the engine, MissingExtraError if the library is missing.
    """
    shape = plan_shape(bundle.manifest)
    if choose_slots(slots) > shape.slots:
        raise UsageError(
            f"{slots} slots were requested, the engine of {bundle.path} was built for {shape.slots}: compile with "
            f"--batch {slots}"
        )
    chosen = choose_capacity(capacity, shape.capacity, bundle.path)
    from megrez.engines.tensorrt.cuda import open_device

    with contextlib.ExitStack() as opened:  # if the session cannot be opened, the device is closed
        device = open_device(bundle, session_bytes(shape, slots))
        opened.callback(device.close)
        session = TensorRtSession(device, shape, slots=slots, capacity=chosen)
        opened.pop_all()
    return session


class TensorRtSession:
    """A Session. Both profiles use the same buffers; `present.*` is bound to the memory of `past_key_values.*`.

    A step runs the engine once for all sequences that decode, and for each prompt in pieces of at most `chunk` tokens;
    see engines/arrange.py.
    """

    def __init__(self, device: Device, shape: PlanShape, *, slots: int = 1, capacity: int | None = None) -> None:
        self.slots, self.capacity, self.vocab_size = slots, capacity or shape.capacity, shape.vocab_size
        self._device, self._shape = device, shape
        self._addresses = {name: device.allocate(size) for name, size in buffer_sizes(shape, slots).items()}
        self._caches = Caches(device, shape, slots)
        self._order = SlotOrder(slots, shape.entry_alignment)
        self._contexts = [self._open(profile) for profile in (DECODE, PREFILL)]
        self._bound: list[tuple[int, int] | None] = [None, None]  # per context: its first cache entry and their number
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._may_record = True
        self._ids = device.pin((slots * shape.chunk,), np.int64)
        self._starts = device.pin((slots,), np.int64)
        self._index = device.pin((shape.max_logits,), np.int64)
        self._logits = device.pin((shape.max_logits, shape.vocab_size), np.float16)

    def step(
        self,
        tokens: ArrayLike,
        starts: ArrayLike,
        logits_index: ArrayLike,
        *,
        slots: ArrayLike | None = None,
        counts: ArrayLike | None = None,
    ) -> Logits:
        """See megrez.runtime.session.Session."""
        batch = Batch.of(tokens, starts, logits_index, slots, counts, max_slots=self.slots, capacity=self.capacity)
        groups = arrange(batch, self._order, self._caches.swap, ragged=True)
        return run_groups(groups, self._run_group, batch, self.vocab_size)

    def copy(self, source: int, target: int, length: int) -> None:
        """See megrez.runtime.session.Session."""
        check_copy(source, target, length, max_slots=self.slots, capacity=self.capacity)
        self._caches.copy(*self._order.copied(source, target, length))
        self._device.synchronize()

    def close(self) -> None:
        """See megrez.runtime.session.Session."""
        self._graphs.clear()
        self._contexts.clear()
        self._device.close()

    def _open(self, profile: int) -> Context:
        context = self._device.open_context(profile)
        for name, address in self._addresses.items():
            context.bind(name, address)
        return context

    def _run_group(self, group: Group) -> Logits:
        width = group.tokens.shape[1]
        wanted, order = np.unique(group.index, return_inverse=True)
        row, column = np.divmod(wanted, width)
        logits = np.empty((len(wanted), self.vocab_size), np.float32)
        for start, stop in self._pieces(width, column):
            here = np.flatnonzero((start <= column) & (column < stop))
            index = row[here] * (stop - start) + column[here] - start
            logits[here] = self._run(group.first, group.tokens[:, start:stop], group.starts + start, index)
        return logits[order.reshape(-1)]

    def _pieces(self, width: int, columns: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """Ranges of columns, each within the engine's limits on tokens and on logits."""
        start = 0
        while start < width:
            stop = min(start + self._shape.chunk, width)
            while np.count_nonzero((start <= columns) & (columns < stop)) > self._shape.max_logits:
                stop -= 1
            yield start, stop
            start = stop

    def _run(self, first: int, tokens: Tokens, starts: Lengths, index: NDArray[np.int64]) -> NDArray[np.float16]:
        """The logits [len(index), vocab_size] of one run. A decode step has one shape, with logits of every sequence;
        the engine returns logits of at least one token.
        """
        sequences, width = tokens.shape
        count = sequences if width == 1 else max(len(index), 1)
        self._ids[: tokens.size] = tokens.reshape(-1)
        self._starts[:sequences] = starts
        self._index[:count] = 0
        self._index[: len(index)] = index
        for name, array in (
            ("input_ids", self._ids[: tokens.size]),
            ("write_indices", self._starts[:sequences]),
            ("logits_index", self._index[:count]),
        ):
            self._device.upload(self._addresses[name], array)
        if width == 1:
            self._decode(first, sequences)
        else:
            self._enqueue(PREFILL, first, (sequences, width), count)
        found = self._logits[: len(index)]
        if len(index):
            self._device.download(self._addresses["logits"], found)
        self._device.synchronize()
        return found

    def _decode(self, first: int, count: int) -> None:
        """Run the first step on these cache entries, then record it; later ones replay it. If recording fails, it
        is not tried again.
        """
        graph = self._graphs.get((first, count))
        if graph is not None:
            graph.launch()
            return
        self._enqueue(DECODE, first, (count, 1), count)
        if self._may_record and len(self._graphs) < MAX_GRAPHS:
            self._device.synchronize()
            recorded = self._contexts[DECODE].capture()
            if recorded is None:
                self._may_record = False
            else:
                self._graphs[first, count] = recorded

    def _enqueue(self, profile: int, first: int, ids: tuple[int, int], wanted: int) -> None:
        context = self._contexts[profile]
        if self._bound[profile] != (first, ids[0]):
            self._bind_caches(context, first, ids[0])
            self._bound[profile] = first, ids[0]
        context.set_shape("input_ids", ids)
        context.set_shape("logits_index", (wanted,))
        context.enqueue()

    def _bind_caches(self, context: Context, first: int, count: int) -> None:
        fixed = (self._shape.kv_heads, self._shape.capacity, self._shape.head_dim)
        for name, address in self._caches.entries(first).items():
            context.bind(f"past_key_values.{name}", address)
            context.bind(f"present.{name}", address)
            context.set_shape(f"past_key_values.{name}", (count, *fixed))
        context.set_shape("write_indices", (count,))
