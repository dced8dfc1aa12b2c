"""Binds a graph's inputs and outputs to buffers (IoBinding); caches are updated in place. Independent of dialects."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from megrez.engines.arrange import Group
from megrez.engines.ort.caches import CacheShape
from megrez.engines.ort.place import HOST, Array, Buffer, Place
from megrez.runtime.errors import EngineError, first_line
from megrez.runtime.session import Lengths, Logits

# (starts [B], new tokens [B], capacity) → the inputs that state the sequence lengths in a dialect.
LengthInputs = Callable[[Lengths, Lengths, int], dict[str, Array]]
K = TypeVar("K", bound=tuple[int, ...])
# Most bindings that are kept of decode steps, one per first cache entry and number of entries; and as many of steps of
# several tokens per sequence, such as a draft's, one per shape.
MAX_BINDINGS = 64
# Most tokens of a step of several tokens per sequence whose binding is kept.
KEPT_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """The inputs of a dialect. length_inputs: those that state lengths. on_host: those read in host memory.

    ragged: whether several sequences at once may have both cached tokens and several new ones. padded: whether they may
    have different numbers of them.
    """

    length_inputs: LengthInputs
    on_host: frozenset[str] = frozenset()
    ragged: bool = True
    padded: bool = False


class BoundModel:
    """session: an onnxruntime.InferenceSession. caches: [slots, kv_heads, capacity, …] by name.

    All decode steps share input and logits buffers for `slots` sequences, and bind the part that they need; steps of
    few tokens per sequence share a buffer for logits.
    """

    def __init__(
        self,
        session: Any,
        shape: CacheShape,
        caches: dict[str, Buffer],
        vocab_size: int,
        interface: Interface,
        place: Place,
    ) -> None:
        self._session, self._shape, self._caches, self._vocab_size = session, shape, caches, vocab_size
        self._interface, self._place = interface, place
        self._shared: tuple[dict[str, Buffer], Buffer] | None = None
        self._kept: OrderedDict[tuple[int, int], _Binding] = OrderedDict()
        self._kept_short: OrderedDict[tuple[int, int, int, int], _Binding] = OrderedDict()
        self._short_logits: Buffer | None = None
        self._recorded: set[tuple[int, int]] = set()
        # ONNX Runtime makes static objects when it first binds. Whoever stops the engine when the process exits, before
        # those are destroyed, can only do so for objects that exist once the model is open.
        self._decoding(0, 1)

    def run(self, group: Group) -> Logits:
        """The logits [w, vocab_size] of a group, valid until the next call. The graph computes logits of at least one
        token, and in a decode step of every sequence, so that the shapes do not depend on `group.index`.
        """
        sequences, width = group.tokens.shape
        wanted = len(group.index)
        if width > 1:
            index = group.index if wanted else np.zeros(1, np.int64)
            inputs = self._inputs(group.tokens, group.starts, group.counts, index)
            found = self._several(group, inputs, len(index)).run(self._session, inputs)
        else:
            inputs = self._inputs(group.tokens, group.starts, group.counts, np.arange(sequences))
            found = self._decoding(group.first, sequences).run(self._session, inputs)
            if group.index.tolist() != list(range(sequences)):
                found = found[group.index]
        return found[:wanted].astype(np.float32, copy=False)

    def close(self) -> None:
        self._kept.clear()
        self._kept_short.clear()
        self._shared = self._session = self._short_logits = None

    def _inputs(self, tokens: Array, starts: Lengths, counts: Lengths, index: Array) -> dict[str, Array]:
        lengths = self._interface.length_inputs(starts, counts, self._shape.capacity)
        return {"input_ids": tokens, "logits_index": index, **lengths}

    def _input_buffers(self, inputs: dict[str, Array]) -> dict[str, Buffer]:
        return {
            name: (HOST if name in self._interface.on_host else self._place).zeros(array.shape, array.dtype)
            for name, array in inputs.items()
        }

    def _logits_buffer(self, tokens: int) -> Buffer:
        return self._place.zeros((tokens, self._vocab_size), self._shape.float_dtype)

    def _several(self, group: Group, inputs: dict[str, Array], logits: int) -> "_Binding":
        """The binding of a step of several tokens per sequence; those of few tokens in all are kept."""
        sequences, width = group.tokens.shape
        if sequences * width > KEPT_TOKENS:
            return self._bound(group.first, self._input_buffers(inputs), self._logits_buffer(logits), None)

        def new() -> _Binding:
            self._short_logits = self._short_logits or self._logits_buffer(KEPT_TOKENS)
            buffer = self._short_logits.entries(0, logits)
            return self._bound(group.first, self._input_buffers(inputs), buffer, None)

        return _recent(self._kept_short, (group.first, sequences, width, logits), new)

    def _decoding(self, first: int, count: int) -> "_Binding":
        """The binding of a decode step on `count` cache entries from `first` on; the most recently used are kept."""

        def new() -> _Binding:
            shared, logits = self._shared_buffers()
            inputs = {name: buffer.entries(0, count) if buffer.shape else buffer for name, buffer in shared.items()}
            return self._bound(first, inputs, logits.entries(0, count), self._recording(first, count))

        return _recent(self._kept, (first, count), new)

    def _shared_buffers(self) -> tuple[dict[str, Buffer], Buffer]:
        if self._shared is None:
            every = np.zeros(self._shape.slots, np.int64)
            starts = every.astype(np.int32)
            inputs = self._inputs(every[:, None], starts, np.ones_like(starts), every)
            self._shared = self._input_buffers(inputs), self._logits_buffer(self._shape.slots)
        return self._shared

    def _recording(self, first: int, count: int) -> int | None:
        """The id of the CUDA graph for these cache entries; None beyond a limit, as ONNX Runtime never frees one."""
        if (first, count) not in self._recorded and len(self._recorded) == MAX_BINDINGS:
            return None
        self._recorded.add((first, count))
        return first * self._shape.slots + count

    def _bound(self, first: int, inputs: dict[str, Buffer], logits: Buffer, recording: int | None) -> "_Binding":
        io = self._session.io_binding()
        for name, buffer in inputs.items():
            _bind(io.bind_input, name, buffer)
        for name, cache in self._caches.items():
            entries = cache.entries(first, inputs["input_ids"].shape[0])
            _bind(io.bind_input, f"past_key_values.{name}", entries)
            _bind(io.bind_output, f"present.{name}", entries)
        _bind(io.bind_output, "logits", logits)
        return _Binding(inputs=inputs, logits=logits, io=io, options=self._place.run_options(recording))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Binding:
    """The buffers of one shape of step, for some entries of the caches."""

    inputs: dict[str, Buffer]
    logits: Buffer
    io: Any
    options: Any

    def run(self, session: Any, inputs: dict[str, Array]) -> NDArray[Any]:
        try:
            for name, array in inputs.items():
                self.inputs[name].write(array)
            session.run_with_iobinding(self.io, self.options)
            return self.logits.read()
        except Exception as error:
            width = self.inputs["input_ids"].shape[1]
            raise EngineError(f"ONNX Runtime failed in a step of {width} tokens: {first_line(error)}") from error


def _recent(kept: "OrderedDict[K, _Binding]", key: K, new: Callable[[], _Binding]) -> _Binding:
    """The binding of this key; of all, the most recently used ones are kept."""
    if key not in kept:
        kept[key] = new()
        if len(kept) > MAX_BINDINGS:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


def _bind(bind: Any, name: str, buffer: Buffer) -> None:
    bind(name, buffer.device, 0, buffer.dtype.type, buffer.shape, buffer.pointer)
