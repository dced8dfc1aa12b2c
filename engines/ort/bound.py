"""A model in ONNX Runtime as a session; independent of prompts, checkpoints and dialects."""

from dataclasses import replace
from typing import Any

from numpy.typing import ArrayLike

from megrez.engines.arrange import arrange, run_groups
from megrez.engines.ort import MODEL_FILE, custom_ops
from megrez.engines.ort.binding import BoundModel, Interface
from megrez.engines.ort.caches import Caches, CacheShape, cache_shape
from megrez.engines.ort.library import load_library, open_model
from megrez.engines.ort.memory import check_memory
from megrez.engines.ort.place import HOST, Place
from megrez.engines.slot_order import SlotOrder
from megrez.runtime.batch import Batch, check_copy
from megrez.runtime.bundle import Bundle
from megrez.runtime.session import Logits
from megrez.runtime.threads import default_threads


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

    threads: within an operator; by default one per physical core. basic: only ONNX Runtime's basic graph
    optimisations, which do not change results. own_kernels: register ours, see custom_ops. Raises UsageError, before
    anything is allocated, if weights and full caches exceed this machine's memory; EngineError if ONNX Runtime rejects
    the graph.
    """
    cache = cache_shape(bundle, slots, capacity)
    check_memory(bundle, cache)
    onnxruntime = load_library("cpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or default_threads()
    options.enable_cpu_mem_arena = False  # it would keep up to four times what a step uses, and is no faster
    if basic:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    graph = bundle.path / MODEL_FILE
    replaces = own_kernels and custom_ops.register(options, cache=bundle.manifest.kv_cache.dtype)
    if not (replaces and custom_ops.leave_padding_out(graph)):
        interface = replace(interface, padded=False)
    session = open_model(onnxruntime, graph, options, ["CPUExecutionProvider"])
    return OrtSession(session, cache, bundle.manifest.architecture.vocab_size, interface, HOST)


class OrtSession:
    """A Session. A step runs the graph once, with kernels that leave padding out; otherwise once for all decoding
    sequences, and for each prompt: see engines/arrange.py.
    """

    def __init__(self, session: Any, cache: CacheShape, vocab_size: int, interface: Interface, place: Place) -> None:
        self.slots, self.capacity, self.vocab_size = cache.slots, cache.capacity, vocab_size
        self._ragged, self._padded = interface.ragged, interface.padded
        self._order = SlotOrder(cache.slots)
        self._caches = Caches(cache, place)
        self._model = BoundModel(session, cache, self._caches.buffers, vocab_size, interface, place)

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
        groups = arrange(batch, self._order, self._caches.swap, ragged=self._ragged, padded=self._padded)
        return run_groups(groups, self._model.run, batch, self.vocab_size)

    def copy(self, source: int, target: int, length: int) -> None:
        """See megrez.runtime.session.Session."""
        check_copy(source, target, length, max_slots=self.slots, capacity=self.capacity)
        self._caches.copy(*self._order.copied(source, target, length))

    def close(self) -> None:
        """See megrez.runtime.session.Session."""
        self._model.close()
        self._caches.close()
