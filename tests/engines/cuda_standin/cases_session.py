"""A session opened from its bundle to its close, CUDA's calls through the real cuda.bindings; held to FakeSession.

What runs on the stream is a function of the host, which adds up the tokens in the caches: see engine.py. No kernel.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.bindings import runtime

from megrez.engines.tensorrt.session import open_session, session_bytes
from megrez.runtime.errors import EngineError
from megrez.runtime.session import FakeSession, Session
from tests.engines.cuda_standin.bundles import make_bundle, shape_of
from tests.engines.cuda_standin.engine import INTERMEDIATE, WEIGHTS, Library
from tests.engines.cuda_standin.standin import StandIn

ERRORS = runtime.cudaError_t
STEPS: list[tuple[list[list[int]], list[int], list[int]]] = [
    ([[3, 1, 4], [2, 7, 1]], [0, 0], [2, 5]),
    ([[1], [5]], [3, 3], [0, 1]),
    ([[5], [9]], [4, 2], [0, 1]),
    ([[6], [2]], [5, 3], [1]),
    ([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]], [6, 4], [5, 0, 11]),
    ([[8], [8]], [12, 10], [0, 1]),
    ([[9], [1]], [13, 11], []),
]


@pytest.fixture
def library(gpu: StandIn, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    stood_in = Library(gpu, shape_of(make_bundle(tmp_path / "b", name)))
    monkeypatch.setitem(sys.modules, name, stood_in)
    yield stood_in
    assert stood_in.failures == []


def opened(folder: Path, name: str, slots: int = 2) -> Session:
    return open_session(make_bundle(folder / "b", name), threads=None, slots=slots)


def run(session: Any) -> list[list[list[float]]]:
    arrays = [(np.array(a), np.array(b, np.int32), np.array(c, np.int64)) for a, b, c in STEPS]
    return [session.step(*one).tolist() for one in arrays]


def expected() -> list[list[list[float]]]:
    return run(FakeSession(vocab_size=267, capacity=64, slots=2))


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_prefill_and_decoding_are_right_and_nothing_is_left(library: Library, tmp_path: Path, name: str) -> None:
    session = opened(tmp_path, name)
    assert run(session) == expected()
    assert library.steps == 8  # six tokens of which three logits a step are wanted take two
    session.close()
    assert library.gpu.report() == []
    session.close()


@pytest.mark.parametrize("name", ["tensorrt"])
def test_decoding_is_recorded_once_and_replayed(library: Library, tmp_path: Path, name: str) -> None:
    session, gpu = opened(tmp_path, name), library.gpu
    run(session)
    asked = ["cudaStreamBeginCapture", "cudaGraphInstantiate", "cudaGraphDestroy", "cudaGraphLaunch"]
    assert [gpu.calls(function) for function in asked] == [1, 1, 1, 4]
    assert gpu.calls("cudaLaunchHostFunc") == 5  # three pieces of prompts, one decoding step and its recording
    assert "executable graph" in gpu.report() and "graph" not in gpu.report()
    session.close()


@pytest.mark.parametrize("name", ["tensorrt_rtx"])
def test_tensorrt_rtx_records_by_itself(library: Library, tmp_path: Path, name: str) -> None:
    session = opened(tmp_path, name)
    run(session)
    assert library.gpu.calls("cudaStreamBeginCapture") == 0 and library.gpu.calls("cudaLaunchHostFunc") == 8
    session.close()


@pytest.mark.parametrize("name", ["tensorrt"])
@pytest.mark.parametrize(
    "failing", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "engine"]
)
def test_a_recording_that_fails_leaves_the_stream_usable(
    library: Library, tmp_path: Path, name: str, failing: str
) -> None:
    """An engine that allocates while it queues a step cannot be captured: CUDA invalidates the capture."""
    session = opened(tmp_path, name)
    if failing == "engine":
        library.allocates = True
    else:
        library.gpu.fail(failing, ERRORS.cudaErrorStreamCaptureUnsupported)
    assert run(session) == expected()
    assert library.gpu.calls("cudaStreamBeginCapture") == 1
    assert library.gpu.calls("cudaGraphLaunch") == 0
    session.close()


@pytest.mark.parametrize("name", ["tensorrt"])
def test_all_memory_is_accounted_for(library: Library, tmp_path: Path, name: str) -> None:
    session, gpu = opened(tmp_path, name), library.gpu
    sizes = [int(line.split()[2]) for line in gpu.report() if line.startswith("device memory")]
    small = sum(max(0, 256 - size) for size in (2 * 8, 3 * 8))  # an allocation is of 256 bytes at least
    shape = shape_of(make_bundle(tmp_path / "b", name))
    assert sum(sizes) <= session_bytes(shape, 2) + WEIGHTS + INTERMEDIATE + 1 + small + 256
    session.close()


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_cached_tokens_are_copied_and_rows_brought_together(library: Library, tmp_path: Path, name: str) -> None:
    """Of three slots, the first and the last decode: their rows are made neighbours. Then one is a copy of another."""
    session, fake = opened(tmp_path, name, slots=3), FakeSession(vocab_size=267, capacity=64, slots=3)
    for one in (session, fake):
        one.step([3, 1, 4, 1, 5, 9, 2, 6, 5], [0, 0, 0], [], counts=[4, 2, 3])
    for start in range(3):
        step = ([7, 8], [4 + start, 3 + start], [0, 1])
        assert session.step(*step, slots=[0, 2]).tolist() == fake.step(*step, slots=[0, 2]).tolist()
    for one in (session, fake):
        one.copy(2, 1, 5)
    assert library.gpu.calls("cudaMemcpy2DAsync") > 2
    for slot, start in ((1, 5), (2, 6), (0, 7)):
        step = ([11], [start], [0])
        assert session.step(*step, slots=[slot]).tolist() == fake.step(*step, slots=[slot]).tolist()
    session.close()


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize("function", ["cudaMalloc", "cudaHostAlloc"])
def test_out_of_memory_at_any_allocation_gives_all_back(
    library: Library, tmp_path: Path, name: str, function: str
) -> None:
    gpu = library.gpu
    opened(tmp_path, name).close()
    asked = gpu.calls(function)
    assert asked >= 4
    for nth in range(2 if function == "cudaMalloc" else 1, asked + 1):  # the engine's weights are its own affair
        gpu.fail(function, ERRORS.cudaErrorMemoryAllocation, first=nth)
        with pytest.raises(EngineError, match=rf"^{function} failed with cudaErrorMemoryAllocation$"):
            opened(tmp_path, name)
        assert gpu.report() == [], nth


@pytest.mark.parametrize("name", ["tensorrt"])
def test_a_copy_that_fails_and_one_that_loses_the_device(library: Library, tmp_path: Path, name: str) -> None:
    session, gpu = opened(tmp_path, name), library.gpu
    gpu.fail("cudaMemcpyAsync", ERRORS.cudaErrorInvalidValue)
    with pytest.raises(EngineError, match=r"^cudaMemcpyAsync failed with cudaErrorInvalidValue$"):
        run(session)
    assert run(session) == expected()
    gpu.fail("cudaMemcpyAsync", ERRORS.cudaErrorIllegalAddress, first=2)
    with pytest.raises(EngineError, match=r"^cudaMemcpyAsync failed with cudaErrorIllegalAddress$"):
        run(session)
    with pytest.raises(EngineError, match=r"failed with cudaErrorIllegalAddress$"):
        session.close()
    session.close()
    gpu.reset()
