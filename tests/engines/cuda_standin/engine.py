"""A stand-in for what needs a GPU in a TensorRT library: reading an engine and running its steps.

A step is a host function, queued on the stream with the real cuda.bindings; no kernel runs. The logger, enumerations
and version are the real tensorrt_rtx's.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorrt_rtx
from cuda.bindings import runtime

from megrez.engines.tensorrt.numpy_device import NumpyContext, sum_of_context
from megrez.engines.tensorrt.session import PlanShape
from megrez.runtime.errors import EngineError
from tests.engines.cuda_standin.standin import StandIn

PLAN = b"a plan for the stand-in"
WEIGHTS, INTERMEDIATE = 1000, 3000
HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def checked(found: tuple[Any, ...]) -> Any:
    assert found[0] == runtime.cudaError_t.cudaSuccess, found
    return found[-1]


class Library:
    """The module that megrez loads.

    openable: whether contexts are created. accepts: whether steps are queued. allocates: whether queueing a step also
    allocates memory, so that it cannot be captured. steps: how many ran. failures: exceptions in them.
    """

    def __init__(self, gpu: StandIn, shape: PlanShape) -> None:
        self.gpu, self.shape = gpu, shape
        self.openable, self.accepts, self.allocates = True, True, False
        self.failures: list[Exception] = []
        self.steps = 0
        self.profiles = (0, 1)
        self.tensors = ["input_ids", "write_indices", "logits_index", "logits", "past_key_values", "present"]
        self.functions: list[Any] = []  # a graph calls them as long as it lives
        self.configs: list[Config] = []
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
        runtime.cudaFree(self._weights)

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return INTERMEDIATE + profile

    def create_runtime_config(self) -> "Config":
        self.library.configs.append(Config())
        return self.library.configs[-1]

    def create_execution_context(self, how: Any) -> "Context | None":
        strategy = how.strategy if isinstance(how, Config) else how
        assert strategy == tensorrt_rtx.ExecutionContextAllocationStrategy.USER_MANAGED
        return Context(self) if self.library.openable else None


class Config:
    cached = True
    strategy: Any = None
    cuda_graph_strategy = tensorrt_rtx.CudaGraphStrategy.DISABLED

    def create_runtime_cache(self) -> "Cache":
        return Cache()

    def set_runtime_cache(self, cache: "Cache") -> bool:
        return self.cached and isinstance(cache, Cache)

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class Cache:
    data = b"compiled"

    def deserialize(self, data: bytes) -> None:
        self.data = data + b" again"

    def serialize(self) -> bytes:
        return self.data


class Context:
    """Says False where TensorRT does."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.library = engine, engine.library
        self.steps = OnStream(self.library)
        self.step = NumpyContext(device=self.steps, profile=-1)  # type: ignore[arg-type]

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.get_device_memory_size_for_profile_v2(1)
        self.library.gpu.view(address, (size,), np.uint8)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.step.profile, self.steps.stream = profile, stream
        return profile in self.library.profiles

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.step.bind(name, address)
        return name.partition(".")[0] in self.library.tensors

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        try:
            self.step.set_shape(name, shape)
        except EngineError:
            return False
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if not self.library.accepts:
            return False
        if self.library.allocates:
            status, address = runtime.cudaMalloc(1)
            if status != runtime.cudaError_t.cudaSuccess:
                return False
            checked(runtime.cudaFree(address))
        assert stream == self.steps.stream, "a profile is chosen on the stream that steps run on"
        self.step.enqueue()
        return True


class OnStream:
    """What a NumpyContext asks of its device, done by CUDA."""

    stream = 0

    def __init__(self, library: Library) -> None:
        self.library, self.shape, self.engine, self.view = library, library.shape, sum_of_context, library.gpu.view
        self.log: list[str] = []

    def queue(self, work: Callable[[], None]) -> None:
        def run(_: Any) -> None:
            self.library.steps += 1
            try:
                work()
            except Exception as error:  # ctypes would swallow it
                self.library.failures.append(error)

        function = HostFunction(run)
        self.library.functions.append(function)
        address = ctypes.cast(function, ctypes.c_void_p).value
        checked(runtime.cudaLaunchHostFunc(self.stream, runtime.cudaHostFn_t(address), 0))
