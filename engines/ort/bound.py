"""A model in ONNX Runtime, its KV cache bound once and written in place; knows no prompt, checkpoint or dialect."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megrez.engines.ort import MODEL_FILE, custom_ops
from megrez.engines.ort.library import load_library, open_model
from megrez.engines.ort.place import HOST, Array, Buffer, Place
from megrez.runtime.bundle import Bundle
from megrez.runtime.errors import EngineError, first_line
from megrez.runtime.session import Lengths, Logits, Tokens, check_room, choose_capacity
from megrez.runtime.threads import default_threads

# From the slots' lengths [slots], the step's width and the capacity: the inputs by which a dialect is told of them.
LengthInputs = Callable[[Lengths, int, int], dict[str, Array]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """How a dialect is told of lengths. on_host: inputs that kernels read on the host, wherever the rest lies.

    ragged: whether several new tokens may follow cached ones in several slots at once; else one slot goes at a time.
    """

    length_inputs: LengthInputs
    on_host: frozenset[str] = frozenset()
    ragged: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """A key and a value per layer, each [slots, kv_heads, capacity, head_dim] of `dtype`, which logits have too."""

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
    """For `slots` sequences of up to `capacity` tokens, by default the bundle's context length, each.

    Raises UsageError when the capacity is not within the context.
    """
    manifest = bundle.manifest
    return CacheShape(
        layers=manifest.architecture.num_hidden_layers,
        slots=slots,
        kv_heads=manifest.architecture.num_key_value_heads,
        capacity=choose_capacity(capacity, manifest.context_length, bundle.path),
        head_dim=manifest.architecture.head_dim,
        dtype=np.dtype(manifest.kv_cache.dtype),
    )


def open_on_cpu(
    bundle: Bundle,
    interface: Interface,
    *,
    threads: int | None,
    slots: int,
    capacity: int | None,
    basic: bool = False,
    own_kernels: bool = False,
) -> "OrtSession":
    """Load the bundle's graph on ONNX Runtime's CPU kernels; see `cache_shape`.

    threads: for one operator; by default the physical cores this process may use. basic: let ONNX Runtime rewrite
    only what leaves every number as it is. own_kernels: ours in place of its own, see custom_ops. Raises EngineError
    when ONNX Runtime refuses the graph.
    """
    cache = cache_shape(bundle, slots, capacity)
    onnxruntime = load_library("cpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or default_threads()
    if basic:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if own_kernels:
        custom_ops.register(options)
    session = open_model(onnxruntime, bundle.path / MODEL_FILE, options, ["CPUExecutionProvider"])
    return OrtSession(session, cache, bundle.manifest.architecture.vocab_size, interface, HOST)


class OrtSession:
    """A Session. ONNX Runtime reads and writes its buffers where they lie; those of decoding steps are kept."""

    def __init__(self, session: Any, cache: CacheShape, vocab_size: int, interface: Interface, place: Place) -> None:
        self.slots, self.capacity, self.vocab_size = cache.slots, cache.capacity, vocab_size
        self._session, self._interface, self._place, self._dtype = session, interface, place, cache.dtype
        self._caches = {name: place.zeros(cache.one, cache.dtype) for name in cache.names}
        self._decode: dict[int, _Binding] = {}  # by the number of rows

    def step(self, tokens: Tokens, lengths: Lengths, rows: Tokens) -> Logits:
        """See megrez.runtime.session.Session."""
        width = tokens.shape[1]
        check_room(lengths, width, self.capacity)
        if width == 1 or self._interface.ragged or self.slots == 1 or not lengths.any():
            return self._run(0, tokens, lengths, rows)
        slots, columns = np.divmod(rows, width)
        logits = np.empty((len(rows), self.vocab_size), np.float32)
        for slot in range(self.slots):
            here = np.flatnonzero(slots == slot)
            logits[here] = self._run(slot, tokens[slot : slot + 1], lengths[slot : slot + 1], columns[here])
        return logits

    def close(self) -> None:
        """See megrez.runtime.session.Session."""
        self._caches.clear()
        self._decode.clear()
        self._session = None

    def _run(self, first: int, tokens: Tokens, lengths: Lengths, rows: Tokens) -> Logits:
        """A step of the slots from `first` on; the graph gives one row of logits at least."""
        (slots, width), wanted = tokens.shape, len(rows)
        index = rows if wanted else np.zeros(1, np.int64)
        told = self._interface.length_inputs(lengths, width, self.capacity)
        inputs: dict[str, Array] = {"input_ids": tokens, "logits_index": index, **told}
        bound = self._decode.get(len(index)) if width == 1 else None
        if bound is None:
            bound = self._bind(first, slots, inputs, recording=len(index) if width == 1 else None)
        if width == 1:
            self._decode[len(index)] = bound
        return bound.run(self._session, inputs)[:wanted].astype(np.float32, copy=False)

    def _bind(self, first: int, slots: int, inputs: dict[str, Array], recording: int | None) -> "_Binding":
        """Inputs and outputs of one shape of step, in memory of their own but for the caches of its slots."""
        fixed = {
            name: (HOST if name in self._interface.on_host else self._place).zeros(array.shape, array.dtype)
            for name, array in inputs.items()
        }
        logits = self._place.zeros((len(inputs["logits_index"]), self.vocab_size), self._dtype)
        io = self._session.io_binding()
        for name, buffer in fixed.items():
            _bind(io.bind_input, name, buffer)
        for name, cache in self._caches.items():
            _bind(io.bind_input, f"past_key_values.{name}", cache, first, slots)
            _bind(io.bind_output, f"present.{name}", cache, first, slots)
        _bind(io.bind_output, "logits", logits)
        return _Binding(inputs=fixed, logits=logits, io=io, options=self._place.run_options(recording))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Binding:
    """One shape of step."""

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


def _bind(bind: Any, name: str, buffer: Buffer, first: int = 0, count: int | None = None) -> None:
    """Bind the `count` rows from `first` on, by default all."""
    shape = buffer.shape if count is None else (count, *buffer.shape[1:])
    row = int(np.prod(buffer.shape[1:])) * buffer.dtype.itemsize
    bind(name, buffer.device, 0, buffer.dtype.type, shape, buffer.pointer + first * row)
