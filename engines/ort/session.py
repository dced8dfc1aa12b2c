"""A bundle's model in ONNX Runtime, its KV cache bound once and written in place; knows no prompt and no checkpoint."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megrez.engines.ort import MODEL_FILE
from megrez.runtime.bundle import Bundle
from megrez.runtime.errors import EngineError, MissingExtraError, UsageError
from megrez.runtime.session import Lengths, Logits, Session, Tokens
from megrez.runtime.threads import default_threads

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    import onnxruntime
except ImportError as error:
    raise MissingExtraError(needed_for="opening this bundle", library="onnxruntime", extra="cpu") from error

ERRORS_ONLY = 3


def open_session(bundle: Bundle, *, threads: int | None, slots: int = 1) -> Session:
    """Load the bundle's graph for `slots` sequences of up to its context length each.

    threads: for one operator; by default the physical cores this process may use.
    Raises EngineError when ONNX Runtime refuses the graph.
    """
    manifest = bundle.manifest
    cache = CacheShape(
        layers=manifest.architecture.num_hidden_layers,
        slots=slots,
        kv_heads=manifest.architecture.num_key_value_heads,
        capacity=manifest.context_length,
        head_dim=manifest.architecture.head_dim,
    )
    session = _load(bundle.path / MODEL_FILE, threads or default_threads())
    return OrtSession(session, cache, manifest.architecture.vocab_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """A key and a value per layer, each float32 [slots, kv_heads, capacity, head_dim]."""

    layers: int
    slots: int
    kv_heads: int
    capacity: int
    head_dim: int


class OrtSession:
    """Runs the `ort` dialect. Every buffer is a numpy array of ours that ONNX Runtime reads and writes in place."""

    def __init__(self, session: Any, cache: CacheShape, vocab_size: int) -> None:
        self.slots, self.capacity, self.vocab_size = cache.slots, cache.capacity, vocab_size
        self._session = session
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
        return bound.run(self._session, tokens, lengths, rows)

    def close(self) -> None:
        """See megrez.runtime.session.Session."""
        self._caches.clear()
        del self._decode, self._session

    def _bind(self, width: int, rows: int) -> "_Binding":
        return _Binding(self._session, self._caches, self.slots, width, rows, self.vocab_size)


class _Binding:
    """One shape of step, its inputs and outputs bound to fixed memory."""

    def __init__(
        self, session: Any, caches: dict[str, NDArray[np.float32]], slots: int, width: int, rows: int, vocab_size: int
    ) -> None:
        self.input_ids = np.zeros((slots, width), np.int64)
        self.seqlens_k = np.zeros(slots, np.int32)
        self.total_sequence_length = np.zeros((), np.int32)
        self.query_seqlens = np.full(slots, width, np.int32)
        self.logits_index = np.zeros(rows, np.int64)
        self.logits = np.zeros((rows, vocab_size), np.float32)
        self._io = session.io_binding()
        for name in ("input_ids", "seqlens_k", "total_sequence_length", "query_seqlens", "logits_index"):
            _bind(self._io.bind_input, name, getattr(self, name))
        for name, cache in caches.items():
            _bind(self._io.bind_input, f"past_key_values.{name}", cache)
            _bind(self._io.bind_output, f"present.{name}", cache)
        _bind(self._io.bind_output, "logits", self.logits)

    def run(self, session: Any, tokens: Tokens, lengths: Lengths, rows: Tokens) -> Logits:
        width = tokens.shape[1]
        self.input_ids[:] = tokens
        self.seqlens_k[:] = lengths + (width - 1)
        self.total_sequence_length[...] = lengths.max() + width
        self.logits_index[:] = rows
        try:
            session.run_with_iobinding(self._io)
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed in a step of {width} tokens: {_first_line(error)}") from error
        return self.logits


def _bind(bind: Any, name: str, array: NDArray[Any]) -> None:
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _load(path: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = ERRORS_ONLY
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
