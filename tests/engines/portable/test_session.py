"""The portable graph's steps are transformers', over caches that ONNX Runtime writes in place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from megrez.engines.ort.bound import OrtSession
from megrez.engines.portable.session import open_session
from megrez.runtime import engines
from megrez.runtime.bundle import open_bundle
from megrez.runtime.errors import UsageError
from tests.graphs import IDS, ragged
from tests.portable import FLOAT32, stage
from tests.reference import logits
from tests.session_contract import Contract, alone, check_session

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral-window": {"family": "mistral", "sliding_window": 5, "tied": True},
    "qwen2-windows": {"family": "qwen2", "sliding_window": 5, "tied": True},
    "qwen3-windows": {"family": "qwen3", "sliding_window": 5, "biases": True, "tied": True},
}


@pytest.fixture
def bundle_of(checkpoint_of: Any, tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """(checkpoint, float32 portable bundle) of a shape."""

    def make(**shape: Any) -> tuple[Path, Path]:
        folder = checkpoint_of(**shape)
        stage(folder, FLOAT32, tmp_path / "b")
        return folder, tmp_path / "b"

    return make


def opened(bundle: Path, slots: int = 1, capacity: int | None = None) -> OrtSession:
    session = open_session(open_bundle(bundle), threads=1, slots=slots, capacity=capacity)
    assert isinstance(session, OrtSession)
    return session


def step(session: Any, tokens: list[list[int]], lengths: list[int], rows: list[int]) -> NDArray[np.float32]:
    arrays = np.array(tokens, np.int64), np.array(lengths, np.int32), np.array(rows, np.int64)
    return np.array(session.step(*arrays))  # a copy: the session's own array is good until the next step


def soil(session: Any) -> None:
    """Rubbish, but finite: attention weighs what it must not see by 0."""
    for seed, cache in enumerate(caches(session).values()):
        cache[:] = np.random.default_rng(seed).normal(0, 30, cache.shape)


def caches(session: Any) -> dict[str, NDArray[Any]]:
    return {name: buffer.read() for name, buffer in session._caches.buffers.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_ragged_chunks_agree_with_transformers_whatever_lies_in_unwritten_slots(bundle_of: Any, name: str) -> None:
    folder, bundle = bundle_of(**FAMILIES[name])
    session = opened(bundle, slots=2)
    soil(session)
    for row, ids in zip(ragged(lambda *arguments: step(session, *arguments)), IDS, strict=True):
        np.testing.assert_allclose(row, logits(folder, ids[: len(row)]), rtol=0, atol=1e-4)


def test_the_contract_of_every_session(bundle_of: Any) -> None:
    folder, bundle = bundle_of(**FAMILIES["mistral-window"])

    def soiled(slots: int) -> OrtSession:
        session = opened(bundle, slots)
        soil(session)
        return session

    def transformers(ids: list[int]) -> NDArray[np.float32]:
        return logits(folder, ids)

    reference = alone(soiled(1))
    check_session(
        Contract(open=soiled, reference=reference, tolerance=1e-5, truth=(transformers, 1e-4), vocab_size=320)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_decoding_token_by_token_equals_reading_at_once(bundle_of: Any, name: str) -> None:
    folder, bundle = bundle_of(**FAMILIES[name])
    session = opened(bundle)
    soil(session)
    at_once = step(session, [IDS[0]], [0], list(range(16)))
    soil(session)
    one_by_one = np.concatenate([step(session, [[token]], [at], [0]) for at, token in enumerate(IDS[0])])
    np.testing.assert_allclose(at_once, logits(folder, IDS[0]), rtol=0, atol=1e-4)
    np.testing.assert_allclose(one_by_one, at_once, rtol=0, atol=1e-4)


def test_the_cache_is_written_in_place_where_the_new_tokens_belong(bundle_of: Any) -> None:
    session: Any = opened(bundle_of()[1], slots=2)
    soil(session)
    before = {name: cache.copy() for name, cache in caches(session).items()}
    places = {name: cache.ctypes.data for name, cache in caches(session).items()}
    step(session, [IDS[0][:3], IDS[1][:3]], [2, 9], [])
    step(session, [[4], [4]], [5, 12], [0, 1])
    assert {name: cache.ctypes.data for name, cache in caches(session).items()} == places and len(places) == 4
    for name, cache in caches(session).items():
        written = (cache != before[name]).any(axis=(1, 3))  # [slots, capacity]
        assert [np.flatnonzero(row).tolist() for row in written] == [[2, 3, 4, 5], [9, 10, 11, 12]]


def test_the_engine_is_found_by_the_manifest_and_holds_as_much_as_was_asked(bundle_of: Any) -> None:
    folder, bundle = bundle_of()
    session: Any = engines.open_session(open_bundle(bundle), threads=1, capacity=16)
    assert isinstance(session, OrtSession) and session.capacity == 16
    assert {cache.shape for cache in caches(session).values()} == {(1, 2, 16, 32)}
    np.testing.assert_allclose(step(session, [IDS[0]], [0], [15]), logits(folder, IDS[0])[15:], rtol=0, atol=1e-4)
    with pytest.raises(UsageError, match=r"^16 cached and 1 new tokens do not fit"):
        step(session, [[1]], [16], [0])


@pytest.mark.parametrize("capacity", [0, 25])
def test_no_more_than_the_context_can_be_asked_for(bundle_of: Any, capacity: int) -> None:
    with pytest.raises(UsageError, match=rf"^a context of {capacity} tokens was requested, .* allows 1 to 24"):
        opened(bundle_of()[1], capacity=capacity)
