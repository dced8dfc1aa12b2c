"""The stand-in itself keeps CUDA's rules, seen through the real cuda.bindings; and Cuda on top of it."""

import ctypes
import sys
from typing import Any

import numpy as np
import pytest
from cuda import bindings
from cuda.bindings import runtime

from megrez.engines.cuda_runtime import Cuda, check_memory
from megrez.runtime.errors import EngineError, MissingExtraError
from tests.engines.cuda_standin.standin import StandIn

Status, Kind = runtime.cudaError_t, runtime.cudaMemcpyKind
THREAD_LOCAL = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal


def ask(function: str, *args: Any) -> Any:
    status, *values = getattr(runtime, function)(*args)
    assert status == Status.cudaSuccess, status
    return values[0] if values else None


def status(function: str, *args: Any) -> str:
    return str(getattr(runtime, function)(*args)[0].name)


def test_the_device_is_what_was_set(gpu: StandIn) -> None:
    gpu.reset(capability=120, total=1 << 20, occupied=1 << 19)
    cuda = Cuda("rtx")
    assert (cuda.capability(), cuda.free_bytes()) == (120, 1 << 19)
    address = cuda("cudaMalloc", 1 << 18)
    assert cuda.free_bytes() == 1 << 18 and cuda("cudaMemGetInfo") == (1 << 18, 1 << 20)
    assert cuda("cudaFree", address) == ()


def test_no_device(gpu: StandIn) -> None:
    gpu.reset(count=0)
    with pytest.raises(
        EngineError, match=r"^no NVIDIA GPU was found: run this bundle on a machine with one, or compile for a "
    ):
        Cuda("rtx")


@pytest.mark.parametrize("error", ["cudaErrorNoDevice", "cudaErrorInsufficientDriver"])
def test_a_device_that_cannot_be_used_is_told_in_cudas_words(gpu: StandIn, error: str) -> None:
    gpu.fail("cudaGetDeviceCount", getattr(Status, error))
    with pytest.raises(EngineError) as caught:
        Cuda("rtx")
    assert str(caught.value) == (
        f"no NVIDIA GPU can be used here (cudaGetDeviceCount failed with {error}): "
        "run this bundle on a machine with one"
    )


def test_without_cudas_bindings_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(bindings, "runtime")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingExtraError, match=r"^this bundle needs cuda-bindings, .*\[rtx\]'$"):
        Cuda("rtx")


def test_what_cuda_refuses_is_named(gpu: StandIn) -> None:
    gpu.reset(total=1000)
    cuda = Cuda("rtx")
    with pytest.raises(EngineError, match=r"^cudaMalloc failed with cudaErrorMemoryAllocation$"):
        cuda("cudaMalloc", 1001)
    with pytest.raises(EngineError, match=r"need 2 MiB, the GPU has 0 MiB free: free some, or ask for less$"):
        check_memory(2 << 20, cuda.free_bytes(), "ask for less")
    check_memory(1000, cuda.free_bytes(), "")


def test_copies_are_held_to_what_is_allocated(gpu: StandIn) -> None:
    stream, address = ask("cudaStreamCreate"), ask("cudaMalloc", 64)
    host = np.arange(65, dtype=np.uint8)
    up, down = Kind.cudaMemcpyHostToDevice, Kind.cudaMemcpyDeviceToHost
    at = host.ctypes.data
    assert status("cudaMemcpyAsync", address, at, 64, up, stream) == "cudaSuccess"
    assert status("cudaMemcpyAsync", address + 60, at, 4, up, stream) == "cudaSuccess"
    for refused in [
        (address, at, 65, up),
        (address + 61, at, 4, up),
        (address - 1, at, 1, up),
        (at, address, 65, down),
        (address, at, 4, down),
        (at, address, 4, up),
        (1 << 20, at, 4, up),
    ]:
        assert status("cudaMemcpyAsync", *refused, stream) == "cudaErrorInvalidValue"
    ask("cudaStreamSynchronize", stream)
    assert gpu.view(address, (64,), np.uint8).tolist() == [*range(60), 0, 1, 2, 3]
    assert status("cudaMemset", address, 0, 65) == "cudaErrorInvalidValue"
    ask("cudaFree", address)
    assert status("cudaMemcpyAsync", address, at, 4, up, stream) == "cudaErrorInvalidValue"
    ask("cudaStreamDestroy", stream)
    assert status("cudaStreamSynchronize", stream) == "cudaErrorInvalidResourceHandle"


def test_a_copy_of_rows_keeps_to_its_pitches(gpu: StandIn) -> None:
    stream, address = ask("cudaStreamCreate"), ask("cudaMalloc", 24)
    memory = gpu.view(address, (4, 6), np.uint8)
    memory[...] = np.arange(24).reshape(4, 6)
    within = Kind.cudaMemcpyDeviceToDevice
    ask("cudaMemcpy2DAsync", address + 4, 6, address, 6, 2, 4, within, stream)
    assert memory[:, 4].tolist() == [4, 10, 16, 22]
    ask("cudaStreamSynchronize", stream)
    assert memory[:, 4:].tolist() == memory[:, :2].tolist() == [[0, 1], [6, 7], [12, 13], [18, 19]]
    assert memory[:, 2:4].tolist() == [[2, 3], [8, 9], [14, 15], [20, 21]]
    for error, *where in [
        ("cudaErrorInvalidValue", address + 5, 6, address, 6),
        ("cudaErrorInvalidPitchValue", address, 1, address, 6),
    ]:
        assert status("cudaMemcpy2DAsync", *where, 2, 4, within, stream) == error
    ask("cudaFree", address)
    ask("cudaStreamDestroy", stream)


def test_pinned_memory_is_read_when_the_copy_runs_and_other_memory_at_once(gpu: StandIn) -> None:
    stream, address, pinned = ask("cudaStreamCreate"), ask("cudaMalloc", 8), ask("cudaHostAlloc", 4, 0)
    fixed = np.frombuffer((ctypes.c_byte * 4).from_address(pinned), np.uint8)
    other = np.ones(4, np.uint8)
    fixed[:] = 1
    ask("cudaMemcpyAsync", address, pinned, 4, Kind.cudaMemcpyHostToDevice, stream)
    ask("cudaMemcpyAsync", address + 4, other.ctypes.data, 4, Kind.cudaMemcpyHostToDevice, stream)
    fixed[:], other[:] = 2, 2
    ask("cudaStreamSynchronize", stream)
    assert gpu.view(address, (8,), np.uint8).tolist() == [2] * 4 + [1] * 4
    ask("cudaMemset", address, 9, 8)
    ask("cudaMemcpyAsync", pinned, address, 4, Kind.cudaMemcpyDeviceToHost, stream)
    assert fixed.tolist() == [2] * 4
    ask("cudaMemcpyAsync", other.ctypes.data, address, 4, Kind.cudaMemcpyDeviceToHost, stream)
    assert fixed.tolist() == other.tolist() == [9] * 4
    for function, what in (("cudaFree", address), ("cudaFreeHost", pinned), ("cudaStreamDestroy", stream)):
        ask(function, what)


def test_a_graph_replays_what_was_recorded_and_outlives_its_recording(gpu: StandIn) -> None:
    stream, address, pinned = ask("cudaStreamCreate"), ask("cudaMalloc", 4), ask("cudaHostAlloc", 4, 0)
    fixed = np.frombuffer((ctypes.c_byte * 4).from_address(pinned), np.uint8)
    ask("cudaMemset", address, 0, 4)
    ask("cudaStreamBeginCapture", stream, THREAD_LOCAL)
    ask("cudaMemcpyAsync", address, pinned, 4, Kind.cudaMemcpyHostToDevice, stream)
    graph = ask("cudaStreamEndCapture", stream)
    executable = ask("cudaGraphInstantiate", graph, 0)
    ask("cudaGraphDestroy", graph)
    ask("cudaStreamSynchronize", stream)
    assert gpu.view(address, (4,), np.uint8).tolist() == [0] * 4
    for value in (3, 4):
        fixed[:] = value
        ask("cudaGraphLaunch", executable, stream)
        ask("cudaStreamSynchronize", stream)
        assert gpu.view(address, (4,), np.uint8).tolist() == [value] * 4
    ask("cudaFree", address)
    ask("cudaGraphExecDestroy", executable)
    ask("cudaFreeHost", pinned)
    ask("cudaStreamDestroy", stream)


@pytest.mark.parametrize("unsafe", ["cudaMalloc", "cudaMemset", "cudaStreamSynchronize"])
def test_what_must_not_be_called_while_recording_ends_the_recording(gpu: StandIn, unsafe: str) -> None:
    stream, address = ask("cudaStreamCreate"), ask("cudaMalloc", 4)
    ask("cudaStreamBeginCapture", stream, THREAD_LOCAL)
    args = {"cudaMalloc": (4,), "cudaMemset": (address, 0, 4), "cudaStreamSynchronize": (stream,)}[unsafe]
    assert status(unsafe, *args).startswith("cudaErrorStreamCapture")
    assert status("cudaStreamEndCapture", stream) == "cudaErrorStreamCaptureInvalidated"
    ask("cudaStreamSynchronize", stream)
    ask("cudaFree", address)
    ask("cudaStreamDestroy", stream)


def test_what_is_left_is_reported_and_so_is_what_is_freed_twice(gpu: StandIn) -> None:
    stream, address, pinned = ask("cudaStreamCreate"), ask("cudaMalloc", 100), ask("cudaHostAlloc", 50, 0)
    ask("cudaStreamBeginCapture", stream, THREAD_LOCAL)
    graph = ask("cudaStreamEndCapture", stream)
    executable = ask("cudaGraphInstantiate", graph, 0)
    left = ["device memory, 100 bytes", "executable graph", "graph", "pinned memory, 50 bytes", "stream"]
    assert gpu.report() == left
    for function, what in [
        ("cudaGraphExecDestroy", executable),
        ("cudaGraphDestroy", graph),
        ("cudaFree", address),
        ("cudaFreeHost", pinned),
        ("cudaStreamDestroy", stream),
    ]:
        ask(function, what)
        assert status(function, what) != "cudaSuccess"
    assert [line.split()[0] for line in gpu.report()] == [
        "cudaFree",
        "cudaFreeHost",
        "cudaGraphDestroy",
        "cudaGraphExecDestroy",
        "cudaStreamDestroy",
    ]
    gpu.reset()


def test_a_lost_device_refuses_everything(gpu: StandIn) -> None:
    address = ask("cudaMalloc", 4)
    gpu.fail("cudaMemset", Status.cudaErrorIllegalAddress)
    assert status("cudaMemset", address, 0, 4) == status("cudaFree", address) == "cudaErrorIllegalAddress"
    gpu.reset()
