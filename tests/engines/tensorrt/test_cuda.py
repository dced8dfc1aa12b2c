"""Opening an engine where its GPU, its library or its memory is missing: one line each. No GPU is used or imitated."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx
from cuda import bindings
from cuda.bindings import runtime

from megrez.engines.cuda_runtime import Cuda
from megrez.engines.tensorrt.cuda import CudaContext, CudaDevice, open_log
from megrez.engines.tensorrt.runtime_cache import RuntimeCache, cache_path
from megrez.engines.tensorrt.session import open_session
from megrez.runtime.bundle import Bundle
from megrez.runtime.errors import BundleError, EngineError, MissingExtraError, UsageError
from megrez.runtime.manifest import Device
from tests.runtime.conftest import plain_manifest

DEVICE = Device(
    library="tensorrt_rtx",
    version=tensorrt_rtx.__version__,
    capabilities=("sm_89", "sm_120"),
    slots=2,
    chunk=16,
    rows=4,
    memory_bytes=10 << 20,
    version_compatible=False,
)


def bundle(folder: Path, **changes: Any) -> Bundle:
    manifest = replace(plain_manifest(), engine="tensorrt", device=replace(DEVICE, **changes))
    return Bundle(path=folder, manifest=manifest)


class OneGpu:
    """The part of CUDA's runtime that is asked before an engine is read."""

    def __init__(self, *, count: int = 1, capability: tuple[int, int] = (8, 9), free: int = 1 << 40) -> None:
        self.answers = {"cudaGetDeviceCount": (count,), "cudaGetDevice": (0,), "cudaMemGetInfo": (free, 1 << 40)}
        self.capability = capability

    class cudaError_t:
        cudaSuccess = 0

    class cudaDeviceAttr:
        cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor = 0, 1

    def cudaDeviceGetAttribute(self, attribute: int, device: int) -> tuple[int, int]:
        return 0, self.capability[attribute]

    def __getattr__(self, name: str) -> Any:
        return lambda *args: (0, *self.answers[name])


def with_gpu(monkeypatch: pytest.MonkeyPatch, gpu: OneGpu) -> None:
    monkeypatch.setattr(bindings, "runtime", gpu)


def opened(monkeypatch: pytest.MonkeyPatch, one: Bundle) -> str:
    with pytest.raises(EngineError) as caught:
        open_session(one, threads=None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_gpu_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, OneGpu(count=0))
    assert opened(monkeypatch, bundle(tmp_path)).startswith("no NVIDIA GPU was found: run this bundle where one is, ")


def test_without_a_driver_that_is_said_in_cudas_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoDriver(OneGpu):
        def cudaGetDeviceCount(self) -> tuple[Any, None]:
            class status:
                name = "cudaErrorInsufficientDriver"

            return status, None

    with_gpu(monkeypatch, NoDriver())
    said = opened(monkeypatch, bundle(tmp_path))
    assert said.startswith(
        "no NVIDIA GPU can be used here (CUDA's cudaGetDeviceCount says cudaErrorInsufficientDriver)"
    )


def test_an_engine_for_later_gpus_too_takes_them() -> None:
    device = replace(DEVICE, capabilities=("sm_75", "sm_80+"))
    assert [one for one in (70, 75, 79, 80, 89, 120) if device.takes(one)] == [75, 80, 89, 120]
    assert [one for one in (80, 89, 90, 120) if DEVICE.takes(one)] == [89, 120]


def test_another_capability_is_told_with_what_to_compile_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, OneGpu(capability=(9, 0)))
    said = opened(monkeypatch, bundle(tmp_path))
    assert "was built for sm_89, sm_120, this GPU is sm_90: compile it with --arch sm_90" in said


def test_too_little_memory_is_told_with_how_much_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, OneGpu(free=4 << 20))
    said = opened(monkeypatch, bundle(tmp_path, memory_bytes=10 << 20))
    assert said == (
        "the model and its KV cache need 10 MiB, the GPU has 4 MiB free: free some, or compile with a smaller "
        "--context or --batch"
    )


def test_a_plan_that_is_no_engine(tmp_path: Path) -> None:
    """What TensorRT itself says of it, here without a GPU."""
    (tmp_path / "model.plan").write_bytes(b"no engine")
    device = object.__new__(CudaDevice)
    device._log = open_log(tensorrt_rtx)
    device._runtime = tensorrt_rtx.Runtime(device._log)
    with pytest.raises(EngineError, match=r"model.plan cannot be read as an engine \(.*\): copy or "):
        device._read(bundle(tmp_path))


def test_a_plan_of_another_version_is_refused_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        open_session(bundle(tmp_path, version="1.6.1.120"), threads=None)
    assert f"was built by tensorrt_rtx 1.6.1.120, {tensorrt_rtx.__version__} is installed: install" in str(caught.value)


def test_a_library_that_is_not_installed_is_named_with_its_extra(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"needs tensorrt \(.*\), which is not installed: .*\[trt\]"):
        open_session(bundle(tmp_path, library="tensorrt"), threads=None)


def test_more_sequences_than_the_engine_takes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^3 sequences at once were asked for, .* takes 2: compile with --batch 3$"):
        open_session(bundle(tmp_path), threads=None, slots=3)


@pytest.mark.parametrize("capacity", [0, 65])
def test_more_room_than_the_engine_has(tmp_path: Path, capacity: int) -> None:
    with pytest.raises(UsageError, match=rf"^room for {capacity} tokens was asked for, .* takes 1 to 64: "):
        open_session(bundle(tmp_path), threads=None, capacity=capacity)


def test_a_bundle_without_a_device_is_not_whole(tmp_path: Path) -> None:
    manifest = replace(plain_manifest(), engine="tensorrt", device=None)
    with pytest.raises(BundleError, match=r"^manifest.json tells no device of its engine: compile the bundle again$"):
        open_session(Bundle(path=tmp_path, manifest=manifest), threads=None)


def test_compiled_kernels_are_kept_beside_the_bundle_and_not_in_it(tmp_path: Path) -> None:
    assert cache_path(tmp_path / "b") == tmp_path / ".b.runtime-cache"


def test_copies_are_asked_for_in_the_terms_of_cudas_bindings() -> None:
    """Without a driver it is CUDA that refuses, not its bindings."""
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("a GPU is at hand, which addresses are real to")
    device = object.__new__(CudaDevice)
    device.cuda, device.stream = object.__new__(Cuda), 0
    device.cuda.runtime = runtime
    for copy in (device.upload, device.download):
        with pytest.raises(EngineError, match=r"^CUDA's cudaMemcpyAsync says cudaError"):
            copy(1 << 20, np.zeros(4, np.int64))


class Noted:
    """CUDA's runtime, called and not there: what was asked of it, in order, of which `failing` is refused."""

    runtime = SimpleNamespace(
        cudaStreamCaptureMode=SimpleNamespace(cudaStreamCaptureModeThreadLocal=1),
    )

    def __init__(self, failing: str = "") -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.failing = failing

    def __call__(self, function: str, *args: Any) -> Any:
        self.calls.append((function, *args))
        if function == self.failing:
            raise EngineError(f"CUDA's {function} says no")
        return {"cudaStreamEndCapture": "graph", "cudaGraphInstantiate": "executable"}.get(function)


def test_a_recorded_step_is_destroyed_once_with_its_device() -> None:
    cuda = Noted()
    device = object.__new__(CudaDevice)
    device.cuda, device.stream = cuda, 7  # type: ignore[assignment]
    device._cache, device._memory, device._pinned, device._graphs = None, [], [], []
    accepting = SimpleNamespace(execute_async_v3=lambda stream: True)
    graph = CudaContext(device, accepting).capture()
    assert graph is not None
    graph.launch()
    assert cuda.calls[-2:] == [("cudaGraphDestroy", "graph"), ("cudaGraphLaunch", "executable", 7)]
    cuda.calls.clear()
    device.close()
    assert cuda.calls == [("cudaGraphExecDestroy", "executable"), ("cudaStreamDestroy", 7)]


@pytest.mark.parametrize(
    ("failing", "accepted", "asked"),
    [
        ("", False, ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphDestroy"]),
        ("cudaStreamBeginCapture", True, ["cudaStreamBeginCapture"]),
        ("cudaStreamEndCapture", True, ["cudaStreamBeginCapture", "cudaStreamEndCapture"]),
        (
            "cudaGraphInstantiate",
            True,
            ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphDestroy"],
        ),
    ],
)
def test_a_recording_that_fails_is_ended_and_steps_go_on(failing: str, accepted: bool, asked: list[str]) -> None:
    cuda = Noted(failing)
    device = object.__new__(CudaDevice)
    device.cuda, device.stream, device._cache, device._graphs = cuda, 7, None, []  # type: ignore[assignment]
    assert CudaContext(device, SimpleNamespace(execute_async_v3=lambda stream: accepted)).capture() is None
    assert [call[0] for call in cuda.calls] == asked and device._graphs == []


def test_tensorrt_rtx_records_decoding_by_itself(tmp_path: Path) -> None:
    class Config:
        cuda_graph_strategy = tensorrt_rtx.CudaGraphStrategy.DISABLED

        def create_runtime_cache(self) -> Any:
            return SimpleNamespace(deserialize=lambda data: None)

        def set_runtime_cache(self, cache: Any) -> bool:
            return True

        def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
            pass

    engine = SimpleNamespace(create_runtime_config=Config, create_execution_context=lambda config: config)
    cache = RuntimeCache(tensorrt_rtx, engine, tmp_path)
    strategies = [cache.open_context(None, replayed=decodes).cuda_graph_strategy.name for decodes in (True, False)]
    assert strategies == ["WHOLE_GRAPH_CAPTURE", "DISABLED"]
    device = object.__new__(CudaDevice)
    device._cache, device.cuda, device.stream = cache, Noted(), 7  # type: ignore[assignment]
    assert CudaContext(device, None).capture() is None and device.cuda.calls == []  # type: ignore[attr-defined]
