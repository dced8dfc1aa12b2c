"""CUDA's runtime API: devices, memory and errors; independent of engines.

Not run on a GPU yet. Tests run every line through the real cuda.bindings, on a stub of CUDA's runtime.
"""

from typing import Any

from megrez.runtime.errors import EngineError, MissingExtraError


class Cuda:
    """CUDA's runtime API, with every status checked. extra: the one that installs it."""

    def __init__(self, extra: str) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise MissingExtraError(needed_for="this bundle", library="cuda-bindings", extra=extra) from error
        self.runtime = runtime
        try:
            count = self("cudaGetDeviceCount")
        except EngineError as error:
            raise EngineError(
                f"no NVIDIA GPU can be used here ({error}): run this bundle on a machine with one"
            ) from error
        if count == 0:
            raise EngineError(
                "no NVIDIA GPU was found: run this bundle on a machine with one, or compile for a cpu-* target"
            )

    def __call__(self, function: str, *args: Any) -> Any:
        """Call `function` and return its results without the status; raises EngineError with CUDA's error name."""
        status, *values = getattr(self.runtime, function)(*args)
        if status != self.runtime.cudaError_t.cudaSuccess:
            raise EngineError(f"{function} failed with {status.name}")
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
    """Raise EngineError if the device has too little free memory; remedy: advice for the message."""
    if needed > free:
        raise EngineError(
            f"the model and its KV cache need {needed / 2**20:.0f} MiB, the GPU has {free / 2**20:.0f} MiB free: "
            f"free some, or {remedy}"
        )
