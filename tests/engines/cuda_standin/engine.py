"""A stand-in for a TensorRT library's runtime half: an engine whose steps are functions of the host, queued on the
stream as its kernels would be. All else, and the logger, is the real tensorrt_rtx. No kernel runs.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import tensorrt_rtx
from cuda.bindings import runtime

from megrez.engines.cuda_runtime import Cuda
from megrez.engines.tensorrt.numpy_device import NumpyContext, sum_of_context
from megrez.engines.tensorrt.session import PlanShape
from megrez.runtime.errors import EngineError
from tests.engines.cuda_standin.standin import StandIn

PLAN = b"a plan for the stand-in"
WEIGHTS, INTERMEDIATE = 1000, 3000
HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Library:
    """The module that megrez loads. capturable: whether a step can be recorded; openable: its contexts opened.

    failures: what went wrong in steps, which CUDA cannot tell. steps: how many ran.
    """

    def __init__(self, gpu: StandIn, shape: PlanShape) -> None:
        self.gpu, self.shape = gpu, shape
        self.capturable = self.openable = True
        self.accepts = True
        self.failures: list[Exception] = []
        self.steps = 0
        self.functions: list[Any] = []
        self.Runtime = lambda log: Runtime(self, log)

    def __getattr__(self, name: str) -> Any:
        return getattr(tensorrt_rtx, name)


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, library: Library, log: Any) -> None:
        self.library, self.log = library, log

    def deserialize_cuda_engine(self, plan: Any) -> "Engine | None":
        if bytes(plan) != PLAN:
            self.log.log(tensorrt_rtx.ILogger.ERROR, "not a plan")
            return None
        return Engine(self.library, self.engine_host_code_allowed)


class Engine:
    """Holds its weights on the device as long as it lives, as TensorRT's do; so does a context its engine."""

    def __init__(self, library: Library, host_code: bool) -> None:
        self.library, self.host_code = library, host_code
        self._weights = checked(runtime.cudaMalloc(WEIGHTS))

    def __del__(self) -> None:
        checked(runtime.cudaFree(self._weights))

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return INTERMEDIATE + profile

    def create_runtime_config(self) -> "Config":
        return Config()

    def create_execution_context(self, how: Any) -> "Context | None":
        strategy = how.strategy if isinstance(how, Config) else how
        assert strategy == tensorrt_rtx.ExecutionContextAllocationStrategy.USER_MANAGED
        return Context(self) if self.library.openable else None


class Config:
    strategy: Any = None
    cuda_graph_strategy = tensorrt_rtx.CudaGraphStrategy.DISABLED

    def create_runtime_cache(self) -> "Cache":
        return Cache()

    def set_runtime_cache(self, cache: "Cache") -> bool:
        return isinstance(cache, Cache)

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class Cache:
    data = b"compiled"

    def deserialize(self, data: bytes) -> None:
        self.data = data + b" again"

    def serialize(self) -> bytes:
        return self.data


class Context:
    """A NumpyContext whose memory and queue are CUDA's: it refuses what TensorRT refuses, by returning False."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.library = engine, engine.library
        self.shape, self.engine_step, self.log = self.library.shape, sum_of_context, list[str]()
        self.numpy = NumpyContext(device=self, profile=-1)  # type: ignore[arg-type]
        self._stream = 0

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= INTERMEDIATE + 1 and self.library.gpu.view(address, (size,), "u1").size == size

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.numpy.profile = profile
        return profile in (0, 1) and stream != 0

    def set_tensor_address(self, name: str, address: int) -> bool:
        known = name in ("input_ids", "write_indices", "logits_index", "logits") or name.partition(".")[0] in (
            "past_key_values",
            "present",
        )
        self.numpy.bind(name, address)
        return known

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        try:
            self.numpy.set_shape(name, shape)
        except EngineError:
            return False
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if not self.library.accepts:
            return False
        self._stream = stream
        captured = runtime.cudaStreamIsCapturing(stream) if False else None
        assert captured is None
        self.numpy.enqueue()
        return True
