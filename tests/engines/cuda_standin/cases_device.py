"""CudaDevice, every call of it through the real cuda.bindings: what is refused, what fails half-way, what is left."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.bindings import runtime

from megrez.engines.tensorrt.cuda import CudaDevice, capability_at_hand, open_device
from megrez.engines.tensorrt.runtime_cache import cache_path
from megrez.engines.tensorrt.session import DECODE, PREFILL
from megrez.runtime.errors import EngineError
from tests.engines.cuda_standin.bundles import MEMORY, make_bundle, shape_of
from tests.engines.cuda_standin.engine import INTERMEDIATE, WEIGHTS, Config, Library
from tests.engines.cuda_standin.standin import StandIn

ERRORS = runtime.cudaError_t
LIBRARIES = ["tensorrt", "tensorrt_rtx"]


@pytest.fixture(params=LIBRARIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def library(gpu: StandIn, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """The library `name`, stood in for. Fails what left an error in a step, or an engine alive."""
    stood_in = Library(gpu, shape_of(make_bundle(tmp_path / "b", name)))
    monkeypatch.setitem(sys.modules, name, stood_in)
    yield stood_in
    gc.collect()
    assert stood_in.failures == []


def opened(folder: Path, name: str, **changes: Any) -> CudaDevice:
    return open_device(make_bundle(folder / "b", name, **changes), session_bytes=1000)


def refused(folder: Path, name: str, **changes: Any) -> str:
    with pytest.raises(EngineError) as caught:
        opened(folder, name, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_it_is_opened_and_leaves_nothing(library: Library, tmp_path: Path, name: str) -> None:
    device = opened(tmp_path, name)
    held = [f"device memory, {WEIGHTS} bytes", f"device memory, {INTERMEDIATE + 1} bytes", "stream"]
    assert library.gpu.report() == held
    assert device.free_bytes() == (1 << 30) - WEIGHTS - INTERMEDIATE - 1
    device.close()
    assert library.gpu.report() == []
    device.close()


def test_copies_go_both_ways_in_order(library: Library, tmp_path: Path, name: str) -> None:
    device = opened(tmp_path, name)
    address = device.allocate(64)
    assert library.gpu.view(address, (256,), np.uint8).tolist() == [0] * 256
    host = device.pin((2, 4), np.int64)
    host[...] = np.arange(8).reshape(2, 4)
    device.upload(address, host)
    back = device.pin((2, 4), np.int64)
    device.download(address, back)
    device.synchronize()
    assert back.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(EngineError, match=r"^cudaMemcpyAsync failed with cudaErrorInvalidValue$"):
        device.upload(address + 256, host)
    device.close()


def test_the_capability_at_hand(gpu: StandIn) -> None:
    gpu.reset(capability=90)
    assert capability_at_hand("tensorrt") == 90


def test_another_capability(library: Library, tmp_path: Path, name: str) -> None:
    library.gpu.reset(capability=90)
    said = refused(tmp_path, name)
    assert "was built for sm_89, sm_120, this GPU is sm_90: compile it with --arch sm_90" in said


def test_no_gpu(library: Library, tmp_path: Path, name: str) -> None:
    library.gpu.reset(count=0)
    assert refused(tmp_path, name).startswith("no NVIDIA GPU ")


def test_too_little_memory(library: Library, tmp_path: Path, name: str) -> None:
    library.gpu.reset(total=MEMORY + 2000, occupied=1001)
    assert refused(tmp_path, name).startswith("the model and its KV cache need 10 MiB, the GPU has 10 MiB free: ")
    library.gpu.reset(total=MEMORY + 2000, occupied=1000)
    opened(tmp_path, name).close()


def test_another_version_of_the_library(library: Library, tmp_path: Path, name: str) -> None:
    assert f"was built by {name} 1.0, {library.__version__} is installed" in refused(tmp_path, name, version="1.0")
    device = opened(tmp_path, name, version="1.0", version_compatible=True)
    assert device.engine.host_code
    device.close()


def test_a_plan_that_is_none(library: Library, tmp_path: Path, name: str) -> None:
    bundle = make_bundle(tmp_path / "b", name)
    (bundle.path / "model.plan").write_bytes(b"no plan at all")
    with pytest.raises(EngineError, match=r"model.plan cannot be read as an engine \(not a plan\): copy or compile"):
        open_device(bundle, session_bytes=1000)


@pytest.mark.parametrize("failing", ["cudaStreamCreate", "cudaMalloc", "cudaMemset"])
def test_what_fails_while_it_is_opened(library: Library, tmp_path: Path, name: str, failing: str) -> None:
    """The engine takes the first block by itself, before the device's own."""
    library.gpu.fail(failing, ERRORS.cudaErrorMemoryAllocation, first=2 if failing == "cudaMalloc" else 1, last=9)
    assert refused(tmp_path, name) == f"{failing} failed with cudaErrorMemoryAllocation"


def test_contexts_bind_and_refuse(library: Library, tmp_path: Path, name: str) -> None:
    device = opened(tmp_path, name)
    contexts = [device.open_context(profile) for profile in (DECODE, PREFILL)]
    if name == "tensorrt_rtx":
        assert [one.cuda_graph_strategy.name for one in library.configs[1:]] == ["WHOLE_GRAPH_CAPTURE", "DISABLED"]
    contexts[0].bind("input_ids", 1 << 20)
    with pytest.raises(EngineError, match=r"^the engine has no tensor other: compile the bundle again$"):
        contexts[0].bind("other", 1 << 20)
    contexts[1].set_shape("input_ids", (2, 4))
    with pytest.raises(EngineError, match=r"^the engine does not take input_ids of shape \[2, 5\]: compile"):
        contexts[1].set_shape("input_ids", (2, 5))
    library.accepts = False
    with pytest.raises(EngineError, match=r"^the engine failed to run a step: compile the bundle again, or report"):
        contexts[0].enqueue()
    library.profiles = (DECODE,)
    with pytest.raises(EngineError, match=r"^the engine has no optimization profile 1: compile the bundle again$"):
        device.open_context(PREFILL)
    library.openable = False
    with pytest.raises(EngineError, match=r"^the engine cannot be opened: no reason was given$"):
        device.open_context(DECODE)
    device._log.log(library.ILogger.ERROR, "out of\nwords")
    with pytest.raises(EngineError, match=r"^the engine cannot be opened: out of$"):
        device.open_context(DECODE)
    device.close()


def test_a_call_that_fails_while_it_is_closed_keeps_nothing_back(library: Library, tmp_path: Path, name: str) -> None:
    """The one block that CUDA refuses to free is still there, all else is given back."""
    device = opened(tmp_path, name)
    address = device.allocate(500)
    device.pin((7,), np.int64)
    library.gpu.fail("cudaFree", ERRORS.cudaErrorInvalidValue)
    with pytest.raises(EngineError, match=r"^cudaFree failed with cudaErrorInvalidValue$"):
        device.close()
    assert library.gpu.report() == ["device memory, 500 bytes"]
    device.close()
    runtime.cudaFree(address)


def test_a_lost_device_is_told_and_closed_once(library: Library, tmp_path: Path, name: str) -> None:
    device = opened(tmp_path, name)
    library.gpu.fail("cudaStreamSynchronize", ERRORS.cudaErrorIllegalAddress)
    for ask in (device.synchronize, device.free_bytes, device.close):
        with pytest.raises(EngineError, match=r"failed with cudaErrorIllegalAddress$"):
            ask()
    device.close()
    library.gpu.reset()


@pytest.mark.parametrize("name", ["tensorrt_rtx"], indirect=True)
def test_a_library_that_takes_no_cache_of_kernels(
    library: Library, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = opened(tmp_path, name)
    monkeypatch.setattr(Config, "cached", False)
    with pytest.raises(EngineError, match=r"^TensorRT-RTX rejected the runtime cache: reinstall it$"):
        device.open_context(DECODE)
    device.close()


def test_kernels_compiled_at_first_use_are_kept(library: Library, tmp_path: Path, name: str) -> None:
    cache = cache_path(tmp_path / "b")
    for kept in (b"compiled", b"compiled again"):
        opened(tmp_path, name).close()
        assert cache.exists() == (name == "tensorrt_rtx")
        assert not cache.exists() or cache.read_bytes() == kept
