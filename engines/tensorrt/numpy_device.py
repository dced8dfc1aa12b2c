"""A Device of numpy arrays that rejects what TensorRT rejects; its fake engine depends on every cached token.

For tests of a session without a GPU. Nothing runs before `synchronize`, the latest that a stream permits.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from megrez.engines.tensorrt.device import DECODE, Array
from megrez.engines.tensorrt.plan_shape import ALIGNMENT, PlanShape
from megrez.runtime.errors import EngineError

# Arguments: tokens [B, T], write indices [B], logits index [W], caches [B, kv_heads, capacity, head_dim] by name, and
# logits [W, vocab_size]. It writes to the caches and the logits.
Engine = Callable[[Array, Array, Array, dict[str, Array], Array], None]


@dataclass
class NumpyDevice:
    """engine: computes a step, see `sum_of_context`. capturable: whether steps can be recorded.

    log: the calls in order, for tests.
    """

    shape: PlanShape
    engine: Engine = field(default_factory=lambda: sum_of_context)
    memory: int = 1 << 30
    capturable: bool = True
    log: list[str] = field(default_factory=list)
    closed: bool = False

    def __post_init__(self) -> None:
        self._buffers: dict[int, Array] = {}
        self._next = ALIGNMENT
        self._queue: list[Callable[[], None]] = []

    def free_bytes(self) -> int:
        return self.memory - sum(buffer.nbytes for buffer in self._buffers.values())

    def allocate(self, size: int) -> int:
        address, self._next = self._next, self._next + -(-size // ALIGNMENT) * ALIGNMENT
        self._buffers[address] = np.zeros(size, np.uint8)
        self.log.append(f"allocate {size}")
        return address

    def pin(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return np.zeros(shape, dtype)

    def upload(self, address: int, array: Array) -> None:
        self._queue.append(lambda: self._copy(self.view(address, array.shape, array.dtype), array))

    def download(self, address: int, array: Array) -> None:
        self._queue.append(lambda: self._copy(array, self.view(address, array.shape, array.dtype)))

    def copy(self, target: int, source: int, *, size: int, pitch: int, pieces: int) -> None:
        self.log.append(f"copy {pieces} x {size}")
        for piece in range(pieces):
            at = piece * pitch
            self._queue.append(partial(self._copy_bytes, target + at, source + at, size))

    def open_context(self, profile: int) -> "NumpyContext":
        return NumpyContext(device=self, profile=profile)

    def synchronize(self) -> None:
        queue, self._queue = self._queue, []
        for work in queue:
            work()

    def close(self) -> None:
        self._buffers.clear()
        self.closed = True

    def queue(self, work: Callable[[], None]) -> None:
        self._queue.append(work)

    def view(self, address: int, shape: tuple[int, ...], dtype: Any) -> Array:
        """The memory at `address` as an array."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        base = max((start for start in self._buffers if start <= address), default=None)
        if base is None or address - base + size > self._buffers[base].nbytes:
            raise EngineError(f"{size} bytes at {address} were never allocated")
        found: Array = self._buffers[base][address - base :][:size].view(dtype).reshape(shape)
        return found

    def _copy_bytes(self, target: int, source: int, size: int) -> None:
        self._copy(self.view(target, (size,), np.uint8), self.view(source, (size,), np.uint8))

    @staticmethod
    def _copy(to: Array, source: Array) -> None:
        to[...] = source


@dataclass
class NumpyContext:
    device: NumpyDevice
    profile: int
    addresses: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def bind(self, name: str, address: int) -> None:
        if address % ALIGNMENT:
            raise EngineError(f"{name} is at {address}, which is not a multiple of {ALIGNMENT}")
        self.addresses[name] = address

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        least, most = self._range(name)
        if len(shape) != len(most) or any(not a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            raise EngineError(f"{name} is {shape}, profile {self.profile} takes {least} to {most}")
        self.shapes[name] = shape

    def enqueue(self) -> None:
        self.device.log.append(f"enqueue {self.profile} {self.shapes.get('input_ids')}")
        self.device.queue(self._step())

    def capture(self) -> "NumpyGraph | None":
        self.device.log.append(f"capture {self.profile} {self.shapes.get('input_ids')}")
        return NumpyGraph(device=self.device, step=self._step()) if self.device.capturable else None

    def _range(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        plan = self.device.shape
        decode = self.profile == DECODE
        if name == "input_ids":
            return (1, 1), (plan.slots, 1 if decode else plan.chunk)
        if name == "logits_index":
            return (1,), (plan.slots if decode else plan.max_logits,)
        fixed = (plan.kv_heads, plan.capacity, plan.head_dim) if name.startswith("past") else ()
        return (1, *fixed), (plan.slots, *fixed)

    def _step(self) -> Callable[[], None]:
        """A step with the present addresses and shapes."""
        addresses, shapes = dict(self.addresses), dict(self.shapes)
        caches = self.device.shape.cache_names
        inputs = ["input_ids", "write_indices", "logits_index", *(f"past_key_values.{name}" for name in caches)]
        missing = [name for name in inputs if name not in shapes]
        missing += [name for name in (*inputs, "logits") if name not in addresses]
        if missing:
            raise EngineError(f"{missing[0]} has no shape or no address")
        for name in caches:
            if addresses[f"past_key_values.{name}"] != addresses.get(f"present.{name}"):
                raise EngineError(f"present.{name} must be bound to the memory of past_key_values.{name}")

        def array(name: str, dtype: Any) -> Array:
            return self.device.view(addresses[name], shapes[name], dtype)

        def run() -> None:
            ids, starts, index = (array(name, np.int64) for name in ("input_ids", "write_indices", "logits_index"))
            kept = {name: array(f"past_key_values.{name}", np.float16) for name in caches}
            logits = self.device.view(addresses["logits"], (len(index), self.device.shape.vocab_size), np.float16)
            if any(len(one) != len(ids) for one in (starts, *kept.values())):
                raise EngineError("inputs differ in their number of sequences")
            self.device.engine(ids, starts, index, kept, logits)

        return run


@dataclass
class NumpyGraph:
    device: NumpyDevice
    step: Callable[[], None]

    def launch(self) -> None:
        self.device.log.append("launch")
        self.device.queue(self.step)


def sum_of_context(ids: Array, starts: Array, index: Array, caches: dict[str, Array], logits: Array) -> None:
    """Write each token to every cache; argmax(logits) = sum(context) % vocab_size, as in FakeSession."""
    width = ids.shape[1]
    for cache in caches.values():
        for slot, start in enumerate(starts):
            cache[slot, :, start : start + width, :] = ids[slot][:, None]
    logits[...] = 0
    for at, position in enumerate(index):
        slot, column = divmod(int(position), width)
        seen = [cache[slot, :, : starts[slot] + column + 1, :].astype(np.int64) for cache in caches.values()]
        # The mean over caches, heads and channels is the sum of the tokens only if all of them hold the tokens.
        total = sum(int(part.sum()) for part in seen) // sum(part[:, :1].size for part in seen)
        logits[at, total % logits.shape[1]] = 1
