"""Steps of any width over ragged slots compute what transformers computes, in buffers that never move."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from megrez.engines.ort import custom_ops
from megrez.engines.ort.bound import OrtSession
from megrez.engines.ort.session import open_session
from megrez.runtime.bundle import open_bundle
from megrez.runtime.errors import EngineError, UsageError
from tests.engines.ort.own_kernels import RUN, needs_kernels
from tests.graphs import IDS, ragged
from tests.reference import logits
from tests.session_contract import Contract, alone, check_session

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral-window": {"family": "mistral", "sliding_window": 5, "tied": True},
    "qwen2-windows": {"family": "qwen2", "sliding_window": 5, "tied": True},
    "qwen3-windows": {"family": "qwen3", "sliding_window": 5, "biases": True, "tied": True},
}


def opened(bundle: Path, slots: int = 1) -> OrtSession:
    session = open_session(open_bundle(bundle), threads=1, slots=slots)
    assert isinstance(session, OrtSession)
    return session


def step(session: Any, tokens: list[list[int]], lengths: list[int], rows: list[int]) -> NDArray[np.float32]:
    arrays = np.array(tokens, np.int64), np.array(lengths, np.int32), np.array(rows, np.int64)
    return np.array(session.step(*arrays))  # a copy: the session's own array is good until the next step


def soil(session: Any, value: float) -> None:
    for cache in caches(session).values():
        cache.fill(value)


def caches(session: Any) -> dict[str, NDArray[Any]]:
    return {name: buffer.read() for name, buffer in session._caches.buffers.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_ragged_slots_agree_with_transformers_whatever_lies_in_unwritten_ones(bundle_of: Any, name: str) -> None:
    folder, bundle = bundle_of(**FAMILIES[name])
    session = opened(bundle, slots=2)
    soil(session, np.nan)
    for row, ids in zip(ragged(lambda *step_args: step(session, *step_args)), IDS, strict=True):
        np.testing.assert_allclose(row, logits(folder, ids[: len(row)]), rtol=0, atol=1e-4)


def test_the_contract_of_every_session(bundle_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ONNX Runtime's kernels, and with ours where they run."""
    folder, bundle = bundle_of(**FAMILIES["mistral-window"])

    def soiled(slots: int) -> OrtSession:
        session = opened(bundle, slots)
        soil(session, np.nan)
        return session

    def transformers(ids: list[int]) -> NDArray[np.float32]:
        return logits(folder, ids)

    for setting in ("0", "1") if RUN else ("0",):
        monkeypatch.setenv(custom_ops.SETTING, setting)
        contract = Contract(
            open=soiled, reference=alone(soiled(1)), tolerance=1e-5, truth=(transformers, 1e-4), vocab_size=320
        )
        check_session(contract)
        assert any(moved(session) for session in contract.opened)


def moved(session: Any) -> bool:
    rows = session._order.entries_of(np.arange(session.slots))
    return rows.tolist() != sorted(rows)


def test_idle_slots_are_not_run(bundle_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run for all that decode, one for each other count; a swap when one leaves, and none while none does."""
    session: Any = opened(bundle_of()[1], slots=4)
    shapes: list[tuple[int, ...]] = []
    run = session._model.run
    monkeypatch.setattr(session._model, "run", lambda group: shapes.append(group.tokens.shape) or run(group))
    session.step(IDS[0][:9], [0, 0, 0], [], slots=[0, 1, 2], counts=[1, 7, 1])
    session.step(IDS[0][:8], [0], [7], slots=[3])
    assert shapes == [(2, 1), (1, 7), (1, 8)]
    places = []
    for at in range(3):
        session.step([1, 2, 3], [1 + at, 1 + at, 8 + at], [0, 1, 2], slots=[0, 2, 3])
        places.append(session._order.entries_of(np.arange(4)).tolist())
    assert shapes[3:] == [(3, 1)] * 3 and places[0] == places[1] == places[2]
    assert sorted(places[0]) == [0, 1, 2, 3] and set(session._model._kept) == {(0, 1), (0, 2), (1, 3)}


def test_short_steps_are_bound_once_per_shape_and_bindings_are_bounded(
    bundle_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, bundle = bundle_of()
    session: Any = opened(bundle)
    monkeypatch.setattr("megrez.engines.ort.binding.MAX_BINDINGS", 2)
    made: list[int] = []
    bound = session._model._bound
    monkeypatch.setattr(session._model, "_bound", lambda first, *rest: made.append(first) or bound(first, *rest))
    expected, start = logits(folder, IDS[0]), 0
    for width, bindings in ((3, 1), (3, 1), (2, 2), (3, 2), (4, 3), (1, 3)):
        rows = range(width) if width > 2 else [width - 1]
        found = step(session, [IDS[0][start : start + width]], [start], list(rows))
        np.testing.assert_allclose(found, expected[[start + row for row in rows]], rtol=0, atol=1e-4)
        assert len(made) == bindings and len(session._model._kept_short) <= 2
        start += width


@pytest.mark.parametrize("name", FAMILIES)
def test_decoding_token_by_token_equals_reading_at_once(bundle_of: Any, name: str) -> None:
    folder, bundle = bundle_of(**FAMILIES[name])
    session = opened(bundle)
    soil(session, np.nan)
    expected = logits(folder, IDS[0])
    at_once = step(session, [IDS[0]], [0], list(range(16)))
    one_by_one = np.concatenate([step(session, [[token]], [at], [0]) for at, token in enumerate(IDS[0])])
    np.testing.assert_allclose(at_once, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(one_by_one, expected, rtol=0, atol=1e-4)


def test_four_slots_of_different_texts_and_lengths(bundle_of: Any) -> None:
    folder, bundle = bundle_of()
    session = opened(bundle, slots=4)
    texts = np.random.default_rng(5).integers(0, 320, (4, 9)).tolist()
    kept = [9, 1, 5, 7]
    step(session, texts, [0] * 4, [])
    found = step(session, [[1]] * 4, kept, [0, 1, 2, 3])
    for row, text, length in zip(found, texts, kept, strict=True):
        np.testing.assert_allclose(row, logits(folder, [*text[:length], 1])[-1], rtol=0, atol=1e-4)


def test_rows_are_positions_of_all_slots_in_the_order_asked_for(bundle_of: Any) -> None:
    folder, bundle = bundle_of()
    found = step(opened(bundle, slots=2), [IDS[0][:5], IDS[1][:5]], [0, 0], [9, 0, 4])
    first, second = (logits(folder, ids[:5]) for ids in IDS)
    np.testing.assert_allclose(found, [second[4], first[0], first[4]], rtol=0, atol=1e-4)


def test_a_step_without_rows_only_fills_the_cache(bundle_of: Any) -> None:
    folder, bundle = bundle_of()
    session = opened(bundle)
    assert step(session, [IDS[0][:6]], [0], []).shape == (0, 320)
    np.testing.assert_allclose(
        step(session, [[7]], [6], [0])[0], logits(folder, [*IDS[0][:6], 7])[6], rtol=0, atol=1e-4
    )


def test_the_cache_is_written_in_place_where_the_new_tokens_belong(bundle_of: Any) -> None:
    session: Any = opened(bundle_of()[1], slots=2)
    soil(session, 5.0)
    arrays = caches(session)
    places = {name: array.ctypes.data for name, array in arrays.items()}
    step(session, [IDS[0][:3], IDS[1][:3]], [2, 9], [])
    step(session, [[4], [4]], [5, 12], [0, 1])
    assert {name: array.ctypes.data for name, array in caches(session).items()} == places
    assert len(arrays) == 4
    for name, array in arrays.items():
        assert caches(session)[name] is array and array.shape == (2, 2, 24, 32)
        written = (array != 5.0).any(axis=(1, 3))  # [slots, capacity]
        assert [np.flatnonzero(row).tolist() for row in written] == [[2, 3, 4, 5], [9, 10, 11, 12]]


def test_decode_steps_use_the_same_buffers(bundle_of: Any) -> None:
    session = opened(bundle_of()[1])
    tokens, rows = np.array([[3]]), np.array([0])
    first = session.step(tokens, np.array([0], np.int32), rows)
    place, before = first.ctypes.data, first.copy()
    second = session.step(tokens, np.array([1], np.int32), rows)
    assert second.ctypes.data == place and not np.array_equal(second, before)


@pytest.mark.parametrize(("length", "width"), [(0, 25), (24, 1), (20, 5)])
def test_what_does_not_fit_is_refused_and_changes_nothing(bundle_of: Any, length: int, width: int) -> None:
    session: Any = opened(bundle_of()[1])
    soil(session, 5.0)
    with pytest.raises(
        UsageError, match=rf"^{length} cached and {width} new tokens do not fit the context of 24: .*--context"
    ):
        step(session, [[1] * width], [length], [0])
    assert all((cache == 5.0).all() for cache in caches(session).values())


def test_a_smaller_capacity_computes_the_same(bundle_of: Any) -> None:
    folder, bundle = bundle_of()
    session: Any = open_session(open_bundle(bundle), threads=1, capacity=16)
    assert session.capacity == 16 and {cache.shape for cache in caches(session).values()} == {(1, 2, 16, 32)}
    np.testing.assert_allclose(step(session, [IDS[0]], [0], [15]), logits(folder, IDS[0])[15:], rtol=0, atol=1e-4)
    with pytest.raises(UsageError, match=r"^16 cached and 1 new tokens do not fit"):
        step(session, [[1]], [16], [0])


@pytest.mark.parametrize("capacity", [0, 25])
def test_no_more_than_the_context_can_be_asked_for(bundle_of: Any, capacity: int) -> None:
    with pytest.raises(UsageError, match=rf"^a context of {capacity} tokens was requested, .* allows 1 to 24"):
        open_session(open_bundle(bundle_of()[1]), threads=1, capacity=capacity)


def test_the_last_slot_can_be_filled(bundle_of: Any) -> None:
    folder, bundle = bundle_of(context=16)
    session = opened(bundle)
    step(session, [IDS[0][:15]], [0], [])
    np.testing.assert_allclose(step(session, [IDS[0][15:]], [15], [0]), logits(folder, IDS[0])[15:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"not a model", lambda raw: b""])
def test_a_broken_model_file_is_told_in_one_line(bundle_of: Any, tmp_path: Path, damage: Any) -> None:
    bundle = open_bundle(shutil.copytree(bundle_of()[1], tmp_path / "b"))
    file = bundle.path / "model.onnx"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(EngineError, match=r"^ONNX Runtime 1\.\S+ cannot load .*model\.onnx: ") as caught:
        open_session(bundle, threads=1)
    assert "\n" not in str(caught.value)


def test_a_failure_inside_a_step_is_told_in_one_line(bundle_of: Any) -> None:
    session = opened(bundle_of()[1])
    with pytest.raises(EngineError, match=r"^ONNX Runtime failed in a step of 1 tokens: ") as caught:
        step(session, [[320]], [0], [0])  # the embedding has rows 0 .. 319
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("extra", "library"), [("cpu", "onnxruntime"), ("cuda", "onnxruntime-gpu")])
def test_without_onnxruntime_the_extra_is_named(extra: str, library: str) -> None:
    program = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from megrez.runtime.errors import MissingExtraError\n"
        "from megrez.engines.ort.library import load_library\n"
        "try: load_library(sys.argv[1])\n"
        "except MissingExtraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program, extra], capture_output=True, text=True)
    assert done.stdout == (
        f"opening this bundle needs {library}, which is not installed: run  pip install 'megrez-compile[{extra}]'\n"
    ), done.stderr


def test_a_closed_session_holds_no_cache(bundle_of: Any) -> None:
    session: Any = opened(bundle_of()[1])
    session.close()
    assert not session._caches.buffers


@needs_kernels
@pytest.mark.parametrize("kv", ["f32", "int8"])
def test_a_step_of_prompts_and_decoding_sequences_is_one_run_with_our_kernels(
    bundle_of: Any, monkeypatch: pytest.MonkeyPatch, kv: str
) -> None:
    """And each sequence gets, to the bit, what it gets in a step of its own; also where caches are read in parts."""
    _, bundle = bundle_of("cpu-int4", context=320, kv=kv)
    ids = np.resize(IDS[0], 320)
    together: Any = opened(bundle, slots=3)
    apart = opened(bundle, slots=3)
    shapes: list[tuple[int, ...]] = []
    run = together._model.run
    monkeypatch.setattr(together._model, "run", lambda group: shapes.append(group.tokens.shape) or run(group))
    lengths = np.zeros(3, np.int64)
    for counts in ((180, 2, 150), (1, 9, 1), (3, 1, 5), (1, 1, 1)):
        tokens = [ids[length : length + count] for length, count in zip(lengths, counts, strict=True)]
        wanted = np.cumsum(counts) - 1
        found = together.step(np.concatenate(tokens), lengths, wanted, slots=[2, 0, 1], counts=counts)
        expected = [
            apart.step(own, [length], [len(own) - 1], slots=[slot]).copy()
            for own, length, slot in zip(tokens, lengths, (2, 0, 1), strict=True)
        ]
        np.testing.assert_array_equal(found, np.concatenate(expected))
        lengths += counts
    assert shapes == [(3, 180), (3, 9), (3, 5), (3, 1)]
    monkeypatch.setattr("megrez.engines.arrange.MOST_PADDED", 5)
    together.step([1, 2, 3, 4, 5], lengths, [0], slots=[2, 0, 1], counts=[3, 1, 1])
    assert shapes[4:] == [(2, 1), (1, 3)]


def test_without_our_kernels_padding_costs_a_token_and_groups_are_apart(
    bundle_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(custom_ops.SETTING, "0")
    session: Any = opened(bundle_of("cpu-int4")[1], slots=2)
    shapes: list[tuple[int, ...]] = []
    run = session._model.run
    monkeypatch.setattr(session._model, "run", lambda group: shapes.append(group.tokens.shape) or run(group))
    session.step(IDS[0][:8], [0, 0], [], slots=[0, 1], counts=[1, 7])
    assert shapes == [(1, 1), (1, 7)]
