"""The host's side of an NPU, over graphs of numpy that compute what FakeSession does: which token comes next."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from megrez.engines.qnn.affine import Affine
from megrez.engines.qnn.graphs import BoundGraph
from megrez.engines.qnn.layout import Layout
from megrez.engines.qnn.session import VISIBLE, StaticSession
from megrez.runtime.errors import EngineError, UsageError
from megrez.runtime.session import FakeSession
from tests.session_contract import Contract, check_session, one_hot_sum

VOCAB, CAPACITY, CHUNK, PARTS = 13, 20, 4, 2
LAYOUT = Layout(chunk=CHUNK, parts=PARTS, logits=Affine(bits=16, scale=0.5, zero_point=4), compiled=None)
# A token is its own embedding; position p has the codes p and 100 + p.
EMBEDDING = np.arange(VOCAB, dtype=np.uint16)[:, None]
ROTARY = np.arange(CAPACITY, dtype=np.uint16)[None, :, None] + np.array([[[0]], [[100]]], np.uint16)


@dataclass
class NumpyGraph:
    """Part N hands on the sum of what a query sees of layer N's cache, which is right only where part N - 1 was.

    Layer 0 caches the tokens; layer 1 the sums, and hands on the last it sees.
    """

    name: str
    arrays: dict[str, Any]

    def __post_init__(self) -> None:
        kind, _, part = self.name.partition("-")
        tokens = CHUNK if kind == "prefill" else 1
        if kind == "head":
            self.make("hidden.2", (1, 1, 1), np.uint16)
            self.make("logits", (1, 1, VOCAB), np.uint16)
            return
        self.part, self.tokens = int(part), tokens
        for name in (f"hidden.{self.part}", f"hidden.{self.part + 1}"):
            self.make(name, (1, tokens, 1), np.uint16)
        for name in ("rotary_cos", "rotary_sin"):
            self.make(name, (1, tokens, 1), np.uint16)
        self.make("mask", (1, 1, tokens, CAPACITY + tokens), np.uint16)
        self.make(f"past_key_values.{self.part}.key", (1, 1, 1, CAPACITY), np.uint8, 77)
        self.make(f"past_key_values.{self.part}.value", (1, 1, CAPACITY, 1), np.uint8, 77)
        self.make(f"present.{self.part}.key", (1, 1, 1, tokens), np.uint8)
        self.make(f"present.{self.part}.value", (1, 1, tokens, 1), np.uint8)

    def make(self, name: str, shape: tuple[int, ...], dtype: Any, fill: int = 0) -> None:
        self.arrays.setdefault(name, np.full(shape, fill, dtype))

    def run(self) -> None:
        if self.name == "head":
            token = int(self.arrays["hidden.2"][0, 0, 0])
            self.arrays["logits"][...] = 4
            self.arrays["logits"][0, 0, token] = 6  # 1.0 in its codes
            return
        new = self.arrays[f"hidden.{self.part}"][0, :, 0]
        keys = np.concatenate([self.arrays[f"past_key_values.{self.part}.key"][0, 0, 0], new])
        values = np.concatenate([self.arrays[f"past_key_values.{self.part}.value"][0, 0, :, 0], new])
        self.arrays[f"present.{self.part}.key"][0, 0, 0] = new
        self.arrays[f"present.{self.part}.value"][0, 0, :, 0] = new
        assert (self.arrays["rotary_sin"] == self.arrays["rotary_cos"] + 100).all()
        for row, seen in enumerate(self.arrays["mask"][0, 0] == VISIBLE):
            assert (keys[seen] == values[seen]).all()
            total = int(keys[seen].astype(int).sum()) % VOCAB if self.part == 0 else int(new[row])
            self.arrays[f"hidden.{self.part + 1}"][0, row, 0] = total


def pair() -> tuple[StaticSession, FakeSession]:
    opened = StaticSession(LAYOUT, NumpyGraph, EMBEDDING, ROTARY, CAPACITY)
    return opened, FakeSession(vocab_size=VOCAB, capacity=CAPACITY)


def test_the_contract_of_every_session() -> None:
    def opened(slots: int) -> StaticSession:
        assert slots == 1
        return pair()[0]

    check_session(Contract(open=opened, reference=one_hot_sum(VOCAB), tolerance=0, vocab_size=VOCAB, most=1))


def test_chunks_rests_and_single_tokens_share_one_cache() -> None:
    session, fake = pair()
    random, length = np.random.default_rng(0), 0
    for width in (4, 1, 1, 3, 6, 1, 4):
        tokens, lengths = random.integers(1, VOCAB, (1, width)), np.array([length], np.int32)
        rows = np.arange(width)[:: 2 if width > 2 else 1]
        found = session.step(tokens, lengths, rows)
        np.testing.assert_array_equal(found, fake.step(tokens, lengths, rows))
        length += width
    assert length == CAPACITY


def test_rows_come_in_the_order_that_they_are_asked_for() -> None:
    session, fake = pair()
    tokens, start = np.array([[3, 1, 4, 1, 5, 9]]), np.zeros(1, np.int32)
    for rows in ([5, 0, 3], [], [2, 2]):
        expected = fake.step(tokens, start, np.array(rows, np.int64))
        np.testing.assert_array_equal(session.step(tokens, start, np.array(rows, np.int64)), expected)


def test_a_sequence_begins_anew_where_its_length_says() -> None:
    session, fake = pair()
    for start, ids in ((0, [5, 6, 7, 8, 9]), (2, [1, 2]), (0, [4])):
        tokens, lengths, rows = np.array([ids]), np.array([start], np.int32), np.array([len(ids) - 1])
        np.testing.assert_array_equal(session.step(tokens, lengths, rows), fake.step(tokens, lengths, rows))


def test_positions_are_those_of_the_tokens() -> None:
    session, _ = pair()
    session.step(np.array([[1, 2, 3]]), np.array([6], np.int32), np.array([0]))
    assert session._prefill.arrays["rotary_cos"][0, :, 0].tolist() == [6, 7, 8, 9]
    session.step(np.array([[1]]), np.array([19], np.int32), np.array([0]))
    assert session._decode.arrays["rotary_cos"][0, 0, 0] == 19


def test_more_than_the_context_holds_is_refused_before_anything_runs() -> None:
    session, _ = pair()
    with pytest.raises(UsageError, match="18 cached and 3 new tokens do not fit the context of 20"):
        session.step(np.array([[1, 2, 3]]), np.array([18], np.int32), np.array([0]))


class Broken:
    """A session of ONNX Runtime that fails when it runs."""

    def io_binding(self) -> Any:
        return self

    def get_inputs(self) -> list[Any]:
        return [type("Value", (), {"name": "x", "shape": [2], "type": "tensor(uint8)"})]

    def get_outputs(self) -> list[Any]:
        return []

    def bind_input(self, *_: Any) -> None: ...

    bind_output = bind_input

    def run_with_iobinding(self, _: Any) -> None:
        raise RuntimeError("QNN error 1003\nmore")


def test_a_graph_that_fails_names_itself_and_arrays_must_fit() -> None:
    with pytest.raises(EngineError, match="the NPU's runtime failed in decode-00: QNN error 1003"):
        BoundGraph(Broken(), {}, "decode-00").run()
    with pytest.raises(EngineError, match=r"decode-00 has x as tensor\(uint8\) \[2\], another graph .* as uint8 \[3\]"):
        BoundGraph(Broken(), {"x": np.zeros(3, np.uint8)}, "decode-00")
