"""Maps the name of an engine to the module that opens its bundles, imported on use."""

import importlib
from collections.abc import Callable
from typing import Protocol, cast

from megrez.runtime.bundle import Bundle
from megrez.runtime.errors import BundleError
from megrez.runtime.session import Session

MODULES = {
    "ort": "megrez.engines.ort.session",
    "ort-cuda": "megrez.engines.ort.cuda",
    "portable": "megrez.engines.portable.session",
    "qdq": "megrez.engines.qnn.reference",
    "qnn": "megrez.engines.qnn.session",
    "tensorrt": "megrez.engines.tensorrt.session",
}
# Engines on CUDA devices: the extra that installs what measures their memory.
_CUDA_EXTRAS = {"ort-cuda": "cuda", "tensorrt": "rtx"}


class OpenSession(Protocol):
    """The signature of the function `open_session` of every engine's module."""

    def __call__(
        self, bundle: Bundle, *, threads: int | None, slots: int = 1, capacity: int | None = None
    ) -> Session: ...


def open_session(bundle: Bundle, *, threads: int | None, slots: int = 1, capacity: int | None = None) -> Session:
    """Open the bundle with the engine that its manifest names.

    slots: sequences in the KV cache. capacity: tokens per slot, by default the bundle's context length.
    Raises BundleError for an unknown engine, UsageError for more slots or tokens than the bundle allows.
    """
    engine = bundle.manifest.engine
    if engine not in MODULES:
        raise BundleError(
            f"the bundle {bundle.path} needs the engine {engine!r}, this version has {', '.join(sorted(MODULES))}: "
            "upgrade with  pip install -U megrez-compile"
        )
    open_it = cast(OpenSession, importlib.import_module(MODULES[engine]).open_session)
    return open_it(bundle, threads=threads, slots=slots, capacity=capacity)


def device_bandwidth(engine: str) -> float | None:
    """Bytes per second of the memory of the device that `engine` runs on; None where it is not known how to measure.

    Raises EngineError without the device, MissingExtraError without its library.
    """
    if engine not in _CUDA_EXTRAS:
        return None
    measure = cast(Callable[[str], float], importlib.import_module("megrez.engines.cuda_bandwidth").copy_bandwidth)
    return measure(_CUDA_EXTRAS[engine])
