"""The float16 graph and the session of cuda-* targets, on CPU kernels; and what is said before CUDA is asked.

No GPU is used or imitated; see tests/engines/cuda_standin/cases_ort.py.
"""

import ctypes
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from cuda import bindings
from numpy.typing import NDArray

from megrez.engines.cuda_runtime import Cuda
from megrez.engines.ort import MODEL_FILE
from megrez.engines.ort.bound import OrtSession
from megrez.engines.ort.caches import cache_shape
from megrez.engines.ort.cuda import INTERFACE, GpuBuffer, OnGpu, open_on_cpu, open_session
from megrez.engines.ort.place import Host, HostBuffer
from megrez.runtime.bundle import Bundle, open_bundle
from megrez.runtime.errors import EngineError, MissingExtraError, UsageError
from tests.graphs import IDS, ragged
from tests.reference import logits
from tests.runtime.conftest import plain_manifest
from tests.session_contract import Contract, alone, check_session

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral-window": {"family": "mistral", "sliding_window": 5, "tied": True},
    "qwen2-windows": {"family": "qwen2", "sliding_window": 5, "tied": True},
    "qwen3-windows": {"family": "qwen3", "sliding_window": 5, "biases": True, "tied": True},
}
# float16 has 11 bits; logits here are up to 4, after two layers.
HALF = 2e-2


def step(session: Any, tokens: list[list[int]], lengths: list[int], rows: list[int]) -> NDArray[np.float32]:
    arrays = np.array(tokens, np.int64), np.array(lengths, np.int32), np.array(rows, np.int64)
    return np.array(session.step(*arrays))


def soil(session: Any) -> None:
    for seed, cache in enumerate(session._caches.buffers.values()):
        cache.write(np.random.default_rng(seed).normal(0, 30, cache.shape))


@pytest.mark.parametrize("name", FAMILIES)
def test_ragged_chunks_agree_with_transformers_whatever_lies_in_unwritten_slots(bundle_of: Any, name: str) -> None:
    folder, bundle = bundle_of("cuda-fp16", **FAMILIES[name])
    session = open_on_cpu(open_bundle(bundle), threads=1, slots=2)
    soil(session)
    for row, ids in zip(ragged(lambda *args: step(session, *args)), IDS, strict=True):
        np.testing.assert_allclose(row, logits(folder, ids[: len(row)]), rtol=0, atol=HALF)


def test_the_contract_of_every_session(bundle_of: Any) -> None:
    folder, bundle = bundle_of("cuda-fp16", **FAMILIES["mistral-window"])

    def soiled(slots: int) -> Any:
        session = open_on_cpu(open_bundle(bundle), threads=1, slots=slots)
        soil(session)
        return session

    def transformers(ids: list[int]) -> NDArray[np.float32]:
        return logits(folder, ids)

    reference = alone(soiled(1))
    check_session(
        Contract(open=soiled, reference=reference, tolerance=HALF, truth=(transformers, HALF), vocab_size=320)
    )


def test_the_graph_is_float16_throughout_and_logits_are_not(bundle_of: Any) -> None:
    bundle = open_bundle(bundle_of("cuda-fp16")[1])
    model = onnxruntime.InferenceSession(bundle.path / MODEL_FILE, providers=["CPUExecutionProvider"])
    inputs = {one.name: one.type for one in model.get_inputs()}
    assert "query_seqlens" not in inputs  # onnxruntime-gpu 1.31's GroupQueryAttention has no such input
    assert {kind for name, kind in inputs.items() if name.startswith("past")} == {"tensor(float16)"}
    assert {one.type for one in model.get_outputs()} == {"tensor(float16)"}
    session = open_on_cpu(bundle, threads=1)
    assert step(session, [[1]], [0], [0]).dtype == np.float32
    cache = bundle.manifest.kv_cache
    assert (cache.dtype, cache.bytes_per_token) == ("float16", 2 * 2 * 2 * 32 * 2)


class Recorder(Host):
    """Where a session's buffers lie, and when each is written and read; what a GPU's Place does, without a GPU."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.made: list[Noted] = []

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> "Noted":
        self.made.append(Noted(np.zeros(shape, dtype), log=self.log))
        return self.made[-1]

    def run_options(self, recording: int | None) -> Any:
        options = Options()
        options.recording = recording
        return options


class Options(onnxruntime.RunOptions):  # type: ignore[misc]
    recording: int | None


class Noted(HostBuffer):
    def __init__(self, array: NDArray[Any], log: list[str]) -> None:
        super().__init__(array)
        self.log = log

    def entries(self, first: int, count: int) -> "Noted":
        return Noted(self.array[first : first + count], self.log)

    def write(self, array: NDArray[Any]) -> None:
        self.log.append(f"up {np.shape(array)} {self.dtype}")
        super().write(array)

    def read(self) -> NDArray[Any]:
        self.log.append(f"down {self.shape} {self.dtype}")
        return super().read()


class Replaying:
    """ONNX Runtime's CPU session, which holds recorded steps to what a CUDA graph demands.

    A step of a number seen before must have every buffer where it was, and what the host reads as it was then.
    """

    def __init__(self, session: Any) -> None:
        self.session = session
        self.seen: dict[int, Any] = {}
        self.runs: list[int | None] = []

    def io_binding(self) -> Any:
        return Bindings(self.session.io_binding())

    def run_with_iobinding(self, bound: Any, options: Any) -> None:
        number = options.recording
        self.runs.append(number)
        host = {name: value for name, value in bound.values().items() if name in INTERFACE.on_host}
        if number is not None:
            assert self.seen.setdefault(number, (bound.places, host)) == (bound.places, host)
        self.session.run_with_iobinding(bound.io, None)


class Bindings:
    def __init__(self, io: Any) -> None:
        self.io = io
        self.places: dict[str, Any] = {}

    def bind_input(self, name: str, *where: Any) -> None:
        self.places[f"in {name}"] = where
        self.io.bind_input(name, *where)

    def bind_output(self, name: str, *where: Any) -> None:
        self.places[f"out {name}"] = where
        self.io.bind_output(name, *where)

    def values(self) -> dict[str, int]:
        """The scalars that were bound, as they are now."""
        scalars = {name.removeprefix("in "): where[4] for name, where in self.places.items() if where[3] == ()}
        return {name: ctypes.c_int32.from_address(pointer).value for name, pointer in scalars.items()}


def recorded(bundle: Path, slots: int) -> tuple[OrtSession, Replaying, Recorder]:
    opened = open_bundle(bundle)
    real = onnxruntime.InferenceSession(opened.path / MODEL_FILE, providers=["CPUExecutionProvider"])
    replaying, place = Replaying(real), Recorder()
    return OrtSession(replaying, cache_shape(opened, slots, None), 320, INTERFACE, place), replaying, place


def test_decoding_is_recorded_whichever_logits_are_wanted_and_prefill_is_not(bundle_of: Any) -> None:
    folder, bundle = bundle_of("cuda-fp16")
    session, replaying, _ = recorded(bundle, slots=2)
    step(session, [IDS[0][:4], IDS[1][:4]], [0, 0], [])
    found = []
    for at in range(4, 9):
        found.append(step(session, [[IDS[0][at]], [IDS[1][at]]], [at, at], [0, 1]))
    step(session, [[1], [1]], [9, 9], [1])
    step(session, [[1], [1]], [9, 9], [])
    assert replaying.runs == [None, 2, 2, 2, 2, 2, 2, 2]
    for slot in range(2):
        expected = logits(folder, IDS[slot][:9])[4:]
        np.testing.assert_allclose([one[slot] for one in found], expected, rtol=0, atol=HALF)


def test_every_choice_of_rows_is_a_recording_of_its_own_and_there_is_an_end_to_them(
    bundle_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Replaying` asserts that what is recorded under one number keeps its addresses."""
    monkeypatch.setattr("megrez.engines.ort.binding.MAX_BINDINGS", 3)
    session, replaying, _ = recorded(bundle_of("cuda-fp16")[1], slots=3)
    for slots in ([0], [1], [0, 1], [2], [1, 2], [0], [2], [0, 1, 2], [1]):
        session.step([4] * len(slots), [0] * len(slots), [], slots=slots)
    assert replaying.runs == [1, 4, 2, None, None, 1, None, None, 4]


def test_a_later_chunk_goes_slot_by_slot_into_each_ones_own_cache(bundle_of: Any) -> None:
    folder, bundle = bundle_of("cuda-fp16")
    session, replaying, _ = recorded(bundle, slots=2)
    step(session, [IDS[0][:3], IDS[1][:3]], [0, 0], [])
    assert len(replaying.runs) == 1
    found = step(session, [IDS[0][3:7], IDS[1][2:6]], [3, 2], [7, 0, 3])
    assert len(replaying.runs) == 3
    expected = [logits(folder, IDS[1][:6])[5], logits(folder, IDS[0][:4])[3], logits(folder, IDS[0][:7])[6]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=HALF)


def test_a_step_moves_its_few_inputs_and_the_rows_asked_for_and_no_cache(bundle_of: Any) -> None:
    session, _, place = recorded(bundle_of("cuda-fp16")[1], slots=2)
    step(session, [[3], [4]], [0, 0], [0, 1])
    made = len(place.made)
    place.log.clear()
    step(session, [[5], [6]], [1, 1], [0, 1])
    assert place.log == ["up (2, 1) int64", "up (2,) int64", "up (2,) int32", "down (2, 320) float16"]
    assert len(place.made) == made


# What opening needs, and what is said where that is not there.


def cuda_bundle(folder: Path) -> Bundle:
    return Bundle(path=folder, manifest=replace(plain_manifest(), engine="ort-cuda", target="cuda-int4"))


def said(one: Bundle, **options: Any) -> str:
    with pytest.raises(EngineError) as caught:
        open_session(one, threads=None, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_onnxruntime_of_cpus_is_told_apart(tmp_path: Path) -> None:
    assert said(cuda_bundle(tmp_path)) == (
        f"this bundle needs onnxruntime-gpu, the onnxruntime {onnxruntime.__version__} that is installed in its place "
        "has no CUDA: run  pip uninstall -y onnxruntime && pip install 'megrez-compile[cuda]'"
    )


def test_without_cudas_bindings_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.delattr(bindings, "runtime", raising=False)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingExtraError, match=r"^this bundle needs cuda-bindings, .*\[cuda\]'$"):
        open_session(cuda_bundle(tmp_path), threads=None)


def test_more_room_than_the_context(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^a context of 65 tokens was requested, .* allows 1 to 64: "):
        open_session(cuda_bundle(tmp_path), threads=None, capacity=65)


def test_steps_that_are_not_recorded_have_a_number_that_says_so() -> None:
    place = OnGpu(onnxruntime, object.__new__(Cuda))
    assert place.run_options(None).get_run_config_entry("gpu_graph_id") == "-1"
    assert place.run_options(8).get_run_config_entry("gpu_graph_id") == "8"


class Memory:
    """CUDA's runtime over this process's own memory: the copies that a session asks for, as libcudart defines them."""

    class cudaMemcpyKind:
        cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice = 1, 2, 3

    class cudaError_t:
        cudaSuccess = 0

    def cudaMemcpy(self, to: int, source: int, size: int, kind: int) -> tuple[int]:
        ctypes.memmove(to, source, size)
        return (0,)

    def cudaMemcpy2DAsync(
        self, to: int, to_pitch: int, source: int, pitch: int, width: int, height: int, kind: int, stream: int
    ) -> tuple[int]:
        assert width <= min(pitch, to_pitch)
        for row in range(height):
            ctypes.memmove(to + row * to_pitch, source + row * pitch, width)
        return (0,)

    def cudaDeviceSynchronize(self) -> tuple[int]:
        return (0,)


def test_a_gpus_buffers_are_written_read_and_copied_row_by_row() -> None:
    cuda = object.__new__(Cuda)
    cuda.runtime = Memory()
    random = np.random.default_rng(0)
    array = random.normal(size=(3, 2, 5, 4)).astype(np.float16)
    buffer = GpuBuffer(cuda=cuda, owner=array, pointer=array.ctypes.data, shape=array.shape, dtype=array.dtype)
    expected = array.copy()
    expected[1:] = random.normal(size=(2, 2, 5, 4))
    buffer.entries(1, 2).write(expected[1:])
    np.testing.assert_array_equal(buffer.read(), expected)
    OnGpu(onnxruntime, cuda).copy_tokens(buffer.entries(2, 1), buffer.entries(0, 1), 3)
    expected[0, :, :3] = expected[2, :, :3]
    np.testing.assert_array_equal(buffer.read(), expected)
    np.testing.assert_array_equal(buffer.entries(2, 1).read(), expected[2:])
