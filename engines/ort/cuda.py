"""The `ort` dialect in float16 on an NVIDIA GPU: buffers on the device, decode steps replayed from CUDA graphs.

Not run on a GPU yet: binding, recording and copies are tested on CPU kernels, see `open_on_cpu`; the rest follows
onnxruntime's documentation.
"""

import contextlib
import io
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from megrez.engines.cuda_runtime import Cuda, check_memory
from megrez.engines.ort import MODEL_FILE, bound
from megrez.engines.ort.binding import Interface
from megrez.engines.ort.bound import OrtSession
from megrez.engines.ort.caches import CacheShape, cache_shape
from megrez.engines.ort.library import load_library, open_model
from megrez.engines.ort.place import Array, Buffer
from megrez.engines.targets import find_target
from megrez.runtime.bundle import Bundle
from megrez.runtime.errors import EngineError, first_line
from megrez.runtime.session import Lengths, Session

EXTRA, PROVIDER = "cuda", "CUDAExecutionProvider"
INSTALL = "pip uninstall -y onnxruntime && pip install 'megrez-compile[cuda]'"
# Steps with this id are not recorded; see the CUDA execution provider's `gpu_graph_id`.
NEVER = -1
SILENT = 4


def open_session(bundle: Bundle, *, threads: int | None, slots: int = 1, capacity: int | None = None) -> Session:
    """Open the bundle on this machine's GPU; `threads` is ignored.

    Raises, before weights are read, UsageError for a capacity beyond the context length, MissingExtraError if a library
    is missing, EngineError if a library, the GPU or its memory does not fit the bundle.
    """
    cache = cache_shape(bundle, slots, capacity)
    onnxruntime = load_library(EXTRA)
    _check_library(onnxruntime)
    place = OnGpu(onnxruntime, _check_gpu(bundle, cache))
    _check_provider(place)
    options = onnxruntime.SessionOptions()
    # By default ONNX Runtime's arena grows in powers of two.
    provider = {"device_id": "0", "enable_cuda_graph": "1", "arena_extend_strategy": "kSameAsRequested"}
    session = open_model(onnxruntime, bundle.path / MODEL_FILE, options, [(PROVIDER, provider)])
    return OrtSession(session, cache, bundle.manifest.architecture.vocab_size, INTERFACE, place)


def open_on_cpu(bundle: Bundle, *, threads: int | None, slots: int = 1, capacity: int | None = None) -> Session:
    """The same bundle with the same inputs on ONNX Runtime's CPU kernels: a slow reference."""
    return bound.open_on_cpu(bundle, INTERFACE, threads=threads, slots=slots, capacity=capacity)


def _length_inputs(starts: Lengths, counts: Lengths, capacity: int) -> dict[str, Array]:
    """See megrez.compile.graph.passes.group_query_attention. For a decode step, the total length is the
    capacity: the kernels derive their launch size from it, which a recorded step keeps, and read each sequence's own
    length on the device. A total length equal to the width means that nothing is cached.
    """
    lengths = (starts + counts).astype(np.int32)
    longest = capacity if counts.max() == 1 else lengths.max()
    return {"seqlens_k": lengths - 1, "total_sequence_length": np.array(longest, np.int32)}


# CUDA's GroupQueryAttention reads this scalar in host memory, and supports several new tokens after cached ones for one
# sequence only.
INTERFACE = Interface(length_inputs=_length_inputs, on_host=frozenset({"total_sequence_length"}), ragged=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuBuffer:
    """owner: the OrtValue that owns this memory."""

    cuda: Cuda
    owner: Any
    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: str = "cuda"

    def entries(self, first: int, count: int) -> "GpuBuffer":
        size = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        return replace(self, pointer=self.pointer + first * size, shape=(count, *self.shape[1:]))

    def write(self, array: Array) -> None:
        """Synchronises: ONNX Runtime's stream does not wait for others, and small copies may return early."""
        given = np.ascontiguousarray(array, self.dtype)
        assert given.shape == self.shape, "the array must have the buffer's shape"
        kind = self.cuda.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.cuda("cudaMemcpy", self.pointer, given.ctypes.data, given.nbytes, kind)
        self.cuda("cudaDeviceSynchronize")

    def read(self) -> Array:
        found = np.empty(self.shape, self.dtype)
        kind = self.cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.cuda("cudaMemcpy", found.ctypes.data, self.pointer, found.nbytes, kind)
        return found


@dataclass(frozen=True, slots=True)
class OnGpu:
    """A megrez.engines.ort.place.Place."""

    onnxruntime: ModuleType
    cuda: Cuda

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> GpuBuffer:
        zeros = np.zeros(shape, dtype)
        try:
            value = self.onnxruntime.OrtValue.ortvalue_from_numpy(zeros, "cuda", 0)
        except Exception as error:
            raise EngineError(
                f"the GPU cannot allocate {zeros.nbytes / 2**20:.1f} MiB more ({first_line(error)}): choose a smaller "
                "target, a smaller --context or fewer sequences"
            ) from error
        return GpuBuffer(cuda=self.cuda, owner=value, pointer=int(value.data_ptr()), shape=shape, dtype=zeros.dtype)

    def copy_tokens(self, source: Buffer, target: Buffer, tokens: int) -> None:
        """A 2-D copy with a row per head: its tokens are contiguous, and the heads are `capacity` tokens apart."""
        entries, heads, capacity, head_dim = source.shape
        token = head_dim * source.dtype.itemsize
        pitch = capacity * token
        kind = self.cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        if tokens:
            copy = target.pointer, pitch, source.pointer, pitch, tokens * token, entries * heads, kind
            self.cuda("cudaMemcpy2DAsync", *copy, 0)

    def synchronize(self) -> None:
        self.cuda("cudaDeviceSynchronize")

    def run_options(self, recording: int | None) -> Any:
        options = self.onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(NEVER if recording is None else recording))
        return options


def _check_library(onnxruntime: ModuleType) -> None:
    """onnxruntime and onnxruntime-gpu install the same folder: the last one installed is present."""
    if PROVIDER not in onnxruntime.get_available_providers():
        raise EngineError(
            f"this bundle needs onnxruntime-gpu, the onnxruntime {onnxruntime.__version__} that is installed in its "
            f"place has no CUDA: run  {INSTALL}"
        )


def _check_gpu(bundle: Bundle, cache: CacheShape) -> Cuda:
    cuda, target = Cuda(EXTRA), find_target(bundle.manifest.target)
    capability, least = cuda.capability(), target.min_capability or 0
    if capability < least:
        raise EngineError(
            f"{target.name} needs {target.devices}, this GPU is sm_{capability}: run this bundle on another one, or "
            "compile for a cpu-* target"
        )
    needed = cache.nbytes + sum(file.size for file in bundle.manifest.files if file.path.startswith(MODEL_FILE))
    check_memory(needed, cuda.free_bytes(), "choose a smaller target, a smaller --context or fewer sequences")
    return cuda


def _check_provider(place: OnGpu) -> None:
    """Without CUDA's libraries ONNX Runtime would fall back to the CPU, with no more than a log message."""
    onnxruntime = place.onnxruntime
    onnxruntime.set_default_logger_severity(SILENT)
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()
    try:
        place.zeros((1,), np.float16)
    except Exception as error:
        raise EngineError(
            f"onnxruntime-gpu {onnxruntime.__version__} cannot load its CUDA provider, CUDA or cuDNN is missing or of "
            f"another version: run  {INSTALL}"
        ) from error
