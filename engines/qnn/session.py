"""A model as static graphs on an NPU: the host looks up embeddings, sets the masks and writes the caches.

Knows the graphs' inputs by name; uses Qualcomm's library only to open contexts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from megrez.engines.qnn import EMBEDDING_FILE, ROTARY_FILE
from megrez.engines.qnn.device import check_chip, check_version
from megrez.engines.qnn.graphs import Array, BoundGraph, Graph
from megrez.engines.qnn.layout import DECODE, HEAD, PREFILL, Layout, graph_name, read_layout
from megrez.engines.qnn.masks import visible
from megrez.runtime.batch import Batch, check_copy
from megrez.runtime.bundle import Bundle
from megrez.runtime.errors import BundleError, EngineError, UsageError, first_line
from megrez.runtime.session import Logits, Session, choose_capacity

MASK, PAST, PRESENT = "mask", "past_key_values.", "present."
# The quantised values of a mask, which is added to attention scores: its minimum, and 0.
MASKED, VISIBLE = 0, 0xFFFF
# (name, arrays) → the graph of this name, bound to the arrays.
OpenGraph = Callable[[str, dict[str, Array]], Graph]


def open_session(bundle: Bundle, *, threads: int | None, slots: int = 1, capacity: int | None = None) -> Session:
    """Open the bundle's contexts on this device's NPU, or in the emulator on x86-64; `threads` is ignored.

    Raises UsageError for more than one slot or a capacity beyond the context length, EngineError if the chip or the
    library does not fit the contexts, MissingExtraError if the library is missing.
    """
    from megrez.engines.qnn.library import context_options, create_session

    layout = read_layout(bundle.path)
    compiled = layout.compiled
    if compiled is None or bundle.manifest.device is None:
        raise BundleError(f"{bundle.path} has no contexts: compile it again")
    check_chip(compiled)
    check_version(bundle.manifest.device)

    def open_graph(name: str, arrays: dict[str, Array]) -> Graph:
        try:
            session = create_session(bundle.path / f"{name}.onnx", context_options(compiled))
        except Exception as error:
            shared = " (weight-shared contexts run on a chip only, not in the emulator)" if compiled.shared else ""
            raise EngineError(f"the context {name} cannot be opened{shared}: {first_line(error)}") from error
        session.disable_fallback()
        return BoundGraph(session, arrays, name)

    return open_static(bundle, layout, open_graph, slots=slots, capacity=capacity)


def open_static(
    bundle: Bundle, layout: Layout, open_graph: OpenGraph, *, slots: int, capacity: int | None
) -> "StaticSession":
    """A session of these graphs; raises UsageError for more than one slot, or a capacity beyond the context length."""
    longest = bundle.manifest.context_length
    if slots != 1:
        raise UsageError(f"{slots} slots were requested, an NPU's static graphs have one: choose 1")
    chosen = choose_capacity(capacity, longest, bundle.path)
    tables = [np.load(bundle.path / file, mmap_mode="r", allow_pickle=False) for file in (EMBEDDING_FILE, ROTARY_FILE)]
    return StaticSession(layout, open_graph, tables[0], tables[1], chosen)


@dataclass(frozen=True, slots=True)
class _Chain:
    """The graphs that one step runs one after the other, for `tokens` tokens, and their arrays by name."""

    tokens: int
    graphs: list[Graph]
    arrays: dict[str, Array]


class StaticSession:
    """A Session of one slot. Both chains read the same caches; the graphs of a chain share the hidden states' arrays.

    embedding: quantised [vocab_size, H]. rotary: quantised cos and sin, [2, positions, head_dim / 2].
    """

    slots = 1

    def __init__(self, layout: Layout, open_graph: OpenGraph, embedding: Array, rotary: Array, capacity: int) -> None:
        self.capacity, self.vocab_size = capacity, len(embedding)
        self._embedding, self._rotary, self._logits = embedding, rotary, layout.logits
        self._prefill = _open_chain(layout, PREFILL, layout.chunk, open_graph, {})
        caches = {name: array for name, array in self._prefill.arrays.items() if name.startswith(PAST)}
        self._decode = _open_chain(layout, DECODE, 1, open_graph, caches)
        self._head_arrays: dict[str, Array] = {}
        self._head = open_graph(HEAD, self._head_arrays)
        self._last_hidden = next(name for name in self._head_arrays if name != "logits")

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
        batch = Batch.of(tokens, starts, logits_index, slots, counts, max_slots=1, capacity=self.capacity)
        width, index = len(batch.tokens), batch.logits_index
        logits = np.empty((len(index), self.vocab_size), np.float32)
        chain = self._decode if width == 1 else self._prefill
        for start in range(0, width, chain.tokens):
            ids = batch.tokens[start : start + chain.tokens]
            self._append(chain, ids, int(batch.starts[0]) + start)
            for row in np.flatnonzero((index >= start) & (index < start + len(ids))):
                logits[row] = self._logits_of(chain.arrays[self._last_hidden][0, index[row] - start])
        return logits

    def copy(self, source: int, target: int, length: int) -> None:
        """See megrez.runtime.session.Session. With one slot there is nothing to copy."""
        check_copy(source, target, length, max_slots=1, capacity=self.capacity)

    def close(self) -> None:
        """See megrez.runtime.session.Session."""
        for chain in (self._prefill, self._decode):
            chain.graphs.clear()
            chain.arrays.clear()
        self.__dict__.pop("_head", None)

    def _append(self, chain: _Chain, ids: Array, length: int) -> None:
        """Run a chain on up to `tokens` ids. Unused positions hold arbitrary values: they are masked, not cached."""
        arrays, count = chain.arrays, len(ids)
        arrays["hidden.0"][0, :count] = self._embedding[ids]
        positions = np.minimum(length + np.arange(chain.tokens), self._rotary.shape[1] - 1)
        arrays["rotary_cos"][0], arrays["rotary_sin"][0] = self._rotary[:, positions]
        for name, array in arrays.items():
            if name.startswith(MASK):
                slots = array.shape[-1] - chain.tokens
                array[0, 0] = np.where(visible(length, chain.tokens, slots, _window(name)), VISIBLE, MASKED)
        for graph in chain.graphs:
            graph.run()
        for name, new in arrays.items():
            if name.startswith(PRESENT):
                cache = arrays[PAST + name.removeprefix(PRESENT)]
                if name.endswith(".key"):  # [1, g, d, positions]
                    cache[..., length : length + count] = new[..., :count]
                else:  # [1, g, positions, d]
                    cache[..., length : length + count, :] = new[..., :count, :]

    def _logits_of(self, hidden: Array) -> Logits:
        self._head_arrays[self._last_hidden][0, 0] = hidden
        self._head.run()
        return self._logits.decode(self._head_arrays["logits"][0, 0])


def _open_chain(layout: Layout, kind: str, tokens: int, open_graph: OpenGraph, arrays: dict[str, Array]) -> _Chain:
    graphs = [open_graph(graph_name(kind, part), arrays) for part in range(layout.parts)]
    return _Chain(tokens, graphs, arrays)


def _window(mask: str) -> int | None:
    """See megrez.compile.graph.passes.explicit_attention.mask_name."""
    found = mask.removeprefix(MASK).removeprefix(".")
    return int(found) if found else None
