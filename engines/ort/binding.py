"""A graph bound to rows of its caches, which it reads and writes where they lie; knows no slot and no dialect."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megrez.engines.arrange import Group
from megrez.engines.ort.caches import CacheShape
from megrez.engines.ort.place import HOST, Array, Buffer, Place
from megrez.runtime.errors import EngineError, first_line
from megrez.runtime.session import Lengths, Logits

# From the starts [B], the tokens of each sequence and the capacity: the inputs by which a dialect gets lengths.
LengthInputs = Callable[[Lengths, int, int], dict[str, Array]]
# Decoding steps whose bindings are kept: one for every first row and number of rows.
KEPT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """How a dialect gets lengths. on_host: inputs that kernels read on the host, wherever the rest lies.

    ragged: whether several new tokens may follow cached ones in several sequences at once.
    """

    length_inputs: LengthInputs
    on_host: frozenset[str] = frozenset()
    ragged: bool = True


class BoundModel:
    """session: an onnxruntime.InferenceSession. caches: [slots, kv_heads, capacity, head_dim] by name.

    All decoding steps share their inputs and logits, of which each takes as many rows as it has sequences.
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
        self._recorded: set[tuple[int, int]] = set()

    def run(self, group: Group) -> Logits:
        """The logits [w, vocab_size] of a group, valid until the next one. The graph gives one row at least, and in a
        decoding step a row for every sequence: its shape is then the same whichever are wanted.
        """
        sequences, width = group.tokens.shape
        wanted = len(group.index)
        if width > 1:
            index = group.index if wanted else np.zeros(1, np.int64)
            inputs = self._inputs(group.tokens, group.starts, index)
            found = self._bound(group.first, *self._buffers(inputs, len(index)), None).run(self._session, inputs)
        else:
            inputs = self._inputs(group.tokens, group.starts, np.arange(sequences))
            found = self._decoding(group.first, sequences).run(self._session, inputs)
            if not np.array_equal(group.index, np.arange(sequences)):
                found = found[group.index]
        return found[:wanted].astype(np.float32, copy=False)

    def close(self) -> None:
        self._kept.clear()
        self._shared = self._session = None

    def _inputs(self, tokens: Array, starts: Lengths, index: Array) -> dict[str, Array]:
        lengths = self._interface.length_inputs(starts, tokens.shape[1], self._shape.capacity)
        return {"input_ids": tokens, "logits_index": index, **lengths}

    def _buffers(self, inputs: dict[str, Array], rows: int) -> tuple[dict[str, Buffer], Buffer]:
        """For inputs of these shapes, and for so many rows of logits."""
        fixed = {
            name: (HOST if name in self._interface.on_host else self._place).zeros(array.shape, array.dtype)
            for name, array in inputs.items()
        }
        return fixed, self._place.zeros((rows, self._vocab_size), self._shape.dtype)

    def _decoding(self, first: int, count: int) -> "_Binding":
        """The binding of a decoding step of the rows from `first` on; those used last are kept."""
        key = first, count
        if key not in self._kept:
            shared, logits = self._shared_buffers()
            inputs = {name: buffer.rows(0, count) if buffer.shape else buffer for name, buffer in shared.items()}
            self._kept[key] = self._bound(first, inputs, logits.rows(0, count), self._recording(first, count))
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _shared_buffers(self) -> tuple[dict[str, Buffer], Buffer]:
        if self._shared is None:
            every = np.zeros(self._shape.slots, np.int64)
            inputs = self._inputs(every[:, None], every.astype(np.int32), every)
            self._shared = self._buffers(inputs, self._shape.slots)
        return self._shared

    def _recording(self, first: int, count: int) -> int | None:
        """A number for what lies at these addresses. A recording is never given back, so there is an end to them."""
        if (first, count) not in self._recorded and len(self._recorded) == KEPT:
            return None
        self._recorded.add((first, count))
        return first * self._shape.slots + count

    def _bound(self, first: int, inputs: dict[str, Buffer], logits: Buffer, recording: int | None) -> "_Binding":
        io = self._session.io_binding()
        for name, buffer in inputs.items():
            _bind(io.bind_input, name, buffer)
        for name, cache in self._caches.items():
            rows = cache.rows(first, inputs["input_ids"].shape[0])
            _bind(io.bind_input, f"past_key_values.{name}", rows)
            _bind(io.bind_output, f"present.{name}", rows)
        _bind(io.bind_output, "logits", logits)
        return _Binding(inputs=inputs, logits=logits, io=io, options=self._place.run_options(recording))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Binding:
    """One shape of step, over rows of the caches."""

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


def _bind(bind: Any, name: str, buffer: Buffer) -> None:
    bind(name, buffer.device, 0, buffer.dtype.type, buffer.shape, buffer.pointer)
