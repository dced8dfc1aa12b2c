"""The Device of an NVIDIA GPU: CUDA's runtime for memory and the stream, TensorRT for the engine.

Not run on a GPU yet. Tests run every line: CUDA calls through the real cuda.bindings on a stub of CUDA's runtime,
TensorRT calls on a stub with its signatures.
"""

import contextlib
import ctypes
import mmap
from typing import Any

import numpy as np

from megrez.engines.cuda_runtime import Cuda, check_memory
from megrez.engines.tensorrt import PLAN_FILE
from megrez.engines.tensorrt.device import DECODE, PREFILL, Array
from megrez.engines.tensorrt.library import EXTRAS, RTX, load_library
from megrez.engines.tensorrt.log import open_log
from megrez.engines.tensorrt.runtime_cache import RuntimeCache
from megrez.runtime.bundle import Bundle
from megrez.runtime.errors import EngineError
from megrez.runtime.manifest import Device as Needed

ALIGNMENT = 256


def open_device(bundle: Bundle, session_bytes: int) -> "CudaDevice":
    """Load the bundle's engine on this machine's GPU.

    session_bytes: device memory that the session will allocate. Raises EngineError, before the engine is read, for
    another library version, no GPU, another compute capability or too little memory; MissingExtraError without the
    libraries.
    """
    needed = bundle.manifest.device
    assert needed is not None, "the session checks this first"
    library = load_library(needed.library)
    if library.__version__ != needed.version and not needed.version_compatible:
        raise EngineError(
            f"{bundle.path} was built by {needed.library} {needed.version}, {library.__version__} is installed: "
            f"install that version, or compile the bundle again"
        )
    cuda = Cuda(EXTRAS[needed.library])
    found = cuda.capability()
    if not needed.takes(found):
        raise EngineError(
            f"{bundle.path} was built for {', '.join(needed.capabilities)}, this GPU is sm_{found}: compile it with "
            f"--arch sm_{found}, or choose a cuda-* target"
        )
    check_memory(session_bytes + needed.memory_bytes, cuda.free_bytes(), "compile with a smaller --context or --batch")
    return CudaDevice(cuda, library, bundle, needed)


def capability_at_hand(library: str) -> int:
    """The compute capability of this machine's GPU; raises EngineError if there is none."""
    return Cuda(EXTRAS[library]).capability()


class CudaDevice:
    """See megrez.engines.tensorrt.device.Device. Both contexts share one buffer for intermediate results."""

    def __init__(self, cuda: Cuda, library: Any, bundle: Bundle, needed: Needed) -> None:
        self.cuda, self.library = cuda, library
        with contextlib.ExitStack() as self._held:  # what `close` frees; freed too if __init__ fails
            self.stream = cuda("cudaStreamCreate")
            self._held.callback(cuda, "cudaStreamDestroy", self.stream)
            self._log = open_log(library, errors_alone=True)
            self._runtime = library.Runtime(self._log)
            if needed.version_compatible:
                self._runtime.engine_host_code_allowed = True  # such a plan contains its own runtime
            self.engine = self._read(bundle)
            self._held.callback(self._release_engine)
            sizes = [self.engine.get_device_memory_size_for_profile_v2(profile) for profile in (DECODE, PREFILL)]
            self._scratch_size = max(*sizes, ALIGNMENT)
            self._scratch = self.allocate(self._scratch_size)
            self._cache = RuntimeCache(library, self.engine, bundle.path) if needed.library == RTX else None
            if self._cache is not None:
                self._held.callback(self._cache.save)
            self._held = self._held.pop_all()

    @property
    def replays(self) -> bool:
        """Whether the library records and replays decode steps itself. TensorRT-RTX does, once it has compiled the
        specialised kernels: an earlier recording of ours would keep the fallback kernels.
        """
        return self._cache is not None

    def free_bytes(self) -> int:
        return self.cuda.free_bytes()

    def allocate(self, size: int) -> int:
        address = int(self.cuda("cudaMalloc", max(size, ALIGNMENT)))
        self._held.callback(self.cuda, "cudaFree", address)
        self.cuda("cudaMemset", address, 0, max(size, ALIGNMENT))
        return address

    def pin(self, shape: tuple[int, ...], dtype: Any) -> Array:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = int(self.cuda("cudaHostAlloc", size, self.cuda.runtime.cudaHostAllocDefault))
        self._held.callback(self.cuda, "cudaFreeHost", address)
        block = (ctypes.c_byte * size).from_address(address)
        return np.frombuffer(block, dtype).reshape(shape)

    def upload(self, address: int, array: Array) -> None:
        self._copy(address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, address: int, array: Array) -> None:
        self._copy(array.ctypes.data, address, array.nbytes, "cudaMemcpyDeviceToHost")

    def copy(self, target: int, source: int, *, size: int, pitch: int, pieces: int) -> None:
        kind = self.cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self.cuda("cudaMemcpy2DAsync", target, pitch, source, pitch, size, pieces, kind, self.stream)

    def open_context(self, profile: int) -> "CudaContext":
        library = self.library
        strategy = library.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._cache is None:
            context = self.engine.create_execution_context(strategy)
        else:
            context = self._cache.open_context(strategy, replayed=profile == DECODE)
        if context is None:
            raise EngineError(f"the engine cannot be opened: {self._reason()}")
        context.set_device_memory(self._scratch, self._scratch_size)
        if not context.set_optimization_profile_async(profile, int(self.stream)):
            raise EngineError(f"the engine has no optimization profile {profile}: compile the bundle again")
        self.synchronize()
        return CudaContext(self, context)

    def keep(self, graph: "CudaGraph") -> None:
        """Destroy `graph` when the device is closed."""
        self._held.callback(graph.destroy)

    def synchronize(self) -> None:
        self.cuda("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        """Free everything, in reverse order; further calls do nothing. Raises EngineError if CUDA fails."""
        self._held.close()

    def _release_engine(self) -> None:
        """Drop all references: the engine's weights stay on the device as long as there is one."""
        self.engine = self._runtime = self._cache = None

    def _read(self, bundle: Bundle) -> Any:
        """Deserialise the engine from the memory-mapped file."""
        path = bundle.path / PLAN_FILE
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            reason = self._reason()
            raise EngineError(f"{path} cannot be read as an engine ({reason}): copy or compile the bundle again")
        return engine

    def _reason(self) -> str:
        """The library's last error message, on one line."""
        return str(self._log.errors[-1]).split("\n", 1)[0] if self._log.errors else "no reason was given"

    def _copy(self, to: int, source: int, size: int, kind: str) -> None:
        self.cuda("cudaMemcpyAsync", to, source, size, getattr(self.cuda.runtime.cudaMemcpyKind, kind), self.stream)


class CudaContext:
    """See megrez.engines.tensorrt.device.Context."""

    def __init__(self, device: CudaDevice, context: Any) -> None:
        self._device, self._context = device, context

    def bind(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise EngineError(f"the engine has no tensor {name}: compile the bundle again")

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if not self._context.set_input_shape(name, shape):
            raise EngineError(f"the engine does not take {name} of shape {list(shape)}: compile the bundle again")

    def enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._device.stream)):
            raise EngineError("the engine failed to run a step: compile the bundle again, or report this as a bug")

    def capture(self) -> "CudaGraph | None":
        cuda, stream = self._device.cuda, self._device.stream
        if self._device.replays:
            return None
        # If this fails, the step has run already, and the next ones run without a graph.
        with contextlib.suppress(EngineError), contextlib.ExitStack() as recording:
            cuda("cudaStreamBeginCapture", stream, cuda.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
            try:
                self.enqueue()
            finally:
                recorded = cuda("cudaStreamEndCapture", stream)  # otherwise every later call on the stream would fail
                recording.callback(cuda, "cudaGraphDestroy", recorded)
            graph = CudaGraph(cuda, cuda("cudaGraphInstantiate", recorded, 0), stream)  # independent of `recorded`
            self._device.keep(graph)
            return graph
        return None


class CudaGraph:
    """See megrez.engines.tensorrt.device.Graph."""

    def __init__(self, cuda: Cuda, executable: Any, stream: Any) -> None:
        self._cuda, self._executable, self._stream = cuda, executable, stream

    def launch(self) -> None:
        self._cuda("cudaGraphLaunch", self._executable, self._stream)

    def destroy(self) -> None:
        self._cuda("cudaGraphExecDestroy", self._executable)
