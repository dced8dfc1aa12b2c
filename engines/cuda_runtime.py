"""CUDA's runtime, for whoever runs on an NVIDIA GPU: devices, their memory and errors; knows no engine.

Not run on a GPU yet. Tests run every line of it through the real cuda.bindings, on a stand-in for CUDA's runtime.
"""

from typing import Any

from megrez.runtime.errors import EngineError, MissingExtraError


class Cuda:
    """CUDA's runtime API, every status checked. extra: what installs it."""

    def __init__(self, extra: str) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise MissingExtraError(needed_for="this bundle", library="cuda-bindings", extra=extra) from error
        self.runtime = runtime
        try:
            count = self("cudaGetDeviceCount")
        except EngineError as error:
            raise EngineError(f"no NVIDIA GPU can be used here ({error}): run this bundle where one is") from error
        if count == 0:
            raise EngineError("no NVIDIA GPU was found: run this bundle where one is, or compile for a cpu-* target")

    def __call__(self, function: str, *args: Any) -> Any:
        """What `function` returns beside its status; raises EngineError with CUDA's name of what went wrong."""
        status, *values = getattr(self.runtime, function)(*args)
        if status != self.runtime.cudaError_t.cudaSuccess:
            raise EngineError(f"CUDA's {function} says {status.name}")
        return values[0] if len(values) == 1 else tuple(values)

    def capability(self) -> int:
        attributes = self.runtime.cudaDeviceAttr
        device = self("cudaGetDevice")
        major = self("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, device)
        minor = self("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, device)
        return int(10 * major + minor)

    def free_bytes(self) -> int:
        free, _ = self("cudaMemGetInfo")
        return int(free)


def check_memory(needed: int, free: int, remedy: str) -> None:
    """Raise EngineError where a device has too little memory left; `remedy` is what to do beside freeing some."""
    if needed > free:
        raise EngineError(
            f"the model and its KV cache need {needed / 2**20:.0f} MiB, the GPU has {free / 2**20:.0f} MiB free: "
            f"free some, or {remedy}"
        )
