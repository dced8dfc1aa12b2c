"""A model in ONNX Runtime, its KV cache bound once and written in place; knows no prompt, checkpoint or dialect."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megrez.engines.ort import MODEL_FILE
from megrez.runtime.bundle import Bundle
from megrez.runtime.errors import EngineError, MissingExtraError, UsageError
from megrez.runtime.session import Lengths, Logits, Tokens
from megrez.runtime.threads import default_threads

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    import onnxruntime
except ImportError as error:
    raise MissingExtraError(needed_for="opening this bundle", library="onnxruntime", extra="cpu") from error

ERRORS_ONLY = 3
# From the slots' lengths [slots] and the step's width: the inputs by which a dialect is told of them.
LengthInputs = Callable[[Lengths, int], dict[str, NDArray[Any]]]


def open_bound(
    bundle: Bundle,
    length_inputs: LengthInputs,
    *,
    threads: int | None,
    slots: int,
    capacity: int | None,
    basic: bool = False,
) -> "OrtSession":
    """Load the bundle's graph for `slots` sequences of up to `capacity` tokens, by default its context length, each.

    threads: for one operator; by default the physical cores this process may use. basic: let ONNX Runtime rewrite
    only what leaves every number as it is. Raises UsageError when the capacity is not within the context, EngineError
    when ONNX Runtime refuses the graph.
    """
    manifest = bundle.manifest
    longest = manifest.context_length
    if capacity is not None and not 1 <= capacity <= longest:
        raise UsageError(
            f"room for {capacity} tokens was asked for, the context of {bundle.path} takes 1 to {longest}: "
            "ask for one of these or compile with a larger --context"
        )
    cache = CacheShape(
        layers=manifest.architecture.num_hidden_layers,
        slots=slots,
        kv_heads=manifest.architecture.num_key_value_heads,
        capacity=longest if capacity is None else capacity,
        head_dim=manifest.architecture.head_dim,
    )
    session = _load(bundle.path / MODEL_FILE, threads or default_threads(), basic)
    return OrtSession(session, cache, manifest.architecture.vocab_size, length_inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """A key and a value per layer, each float32 [slots, kv_heads, capacity, head_dim]."""

    layers: int
    slots: int
    kv_heads: int
    capacity: int
    head_dim: int


class OrtSession:
    """A Session. Every buffer is a numpy array of ours that ONNX Runtime reads and writes in place."""

    def __init__(self, session: Any, cache: CacheShape, vocab_size: int, length_inputs: LengthInputs) -> None:
        self.slots, self.capacity, self.vocab_size = cache.slots, cache.capacity, vocab_size
        self._session, self._length_inputs = session, length_inputs
        shape = (cache.slots, cache.kv_heads, cache.capacity, cache.head_dim)
        names = [f"{layer}.{kind}" for layer in range(cache.layers) for kind in ("key", "value")]
        self._caches = {name: np.zeros(shape, np.float32) for name in names}
        self._decode = self._bind(1, cache.slots)

    def step(self, tokens: Tokens, lengths: Lengths, rows: Tokens) -> Logits:
        """See megrez.runtime.session.Session."""
        width = tokens.shape[1]
        if int(lengths.max()) + width > self.capacity:
            raise UsageError(
                f"{int(lengths.max())} tokens are cached and {width} more were given, the context holds "
                f"{self.capacity}: shorten the prompt or compile with a larger --context"
            )
        fits = (width, len(rows)) == (1, self.slots)
        bound = self._decode if fits else self._bind(width, len(rows))
        inputs = {"input_ids": tokens, "logits_index": rows, **self._length_inputs(lengths, width)}
        return bound.run(self._session, inputs)

    def close(self) -> None:
        """See megrez.runtime.session.Session."""
        self._caches.clear()
        del self._decode, self._session

    def _bind(self, width: int, rows: int) -> "_Binding":
        inputs: dict[str, NDArray[Any]] = {
            "input_ids": np.zeros((self.slots, width), np.int64),
            "logits_index": np.zeros(rows, np.int64),
            **self._length_inputs(np.zeros(self.slots, np.int32), width),
        }
        return _Binding(self._session, self._caches, inputs, np.zeros((rows, self.vocab_size), np.float32))


class _Binding:
    """One shape of step, its inputs and outputs bound to fixed memory."""

    def __init__(
        self, session: Any, caches: dict[str, NDArray[np.float32]], inputs: dict[str, NDArray[Any]], logits: Logits
    ) -> None:
        self.inputs, self.logits = inputs, logits
        self._io = session.io_binding()
        for name, array in inputs.items():
            _bind(self._io.bind_input, name, array)
        for name, cache in caches.items():
            _bind(self._io.bind_input, f"past_key_values.{name}", cache)
            _bind(self._io.bind_output, f"present.{name}", cache)
        _bind(self._io.bind_output, "logits", logits)

    def run(self, session: Any, inputs: dict[str, NDArray[Any]]) -> Logits:
        for name, array in inputs.items():
            self.inputs[name][...] = array
        try:
            session.run_with_iobinding(self._io)
        except Exception as error:
            width = self.inputs["input_ids"].shape[1]
            raise EngineError(f"ONNX Runtime failed in a step of {width} tokens: {_first_line(error)}") from error
        return self.logits


def _bind(bind: Any, name: str, array: NDArray[Any]) -> None:
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _load(path: Path, threads: int, basic: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = ERRORS_ONLY
    if basic:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
