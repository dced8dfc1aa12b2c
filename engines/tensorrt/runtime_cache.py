"""TensorRT-RTX's kernels, compiled for one GPU at first use and kept beside the bundle; knows no session."""

import contextlib
from pathlib import Path
from typing import Any

from megrez.runtime.errors import EngineError


class RuntimeCache:
    """The kernels that contexts of `engine` compile. It only saves time: if it cannot be written, nothing happens."""

    def __init__(self, library: Any, engine: Any, bundle: Path) -> None:
        self._library, self._engine = library, engine
        self._path = cache_path(bundle)
        self._configs = [engine.create_runtime_config()]  # contexts use them as long as they live
        self._cache = self._configs[0].create_runtime_cache()
        with contextlib.suppress(OSError):
            self._cache.deserialize(self._path.read_bytes())  # of another version or GPU, it is ignored

    def open_context(self, strategy: Any, *, replayed: bool) -> Any:
        """replayed: run as one CUDA graph, captured once the kernels for its shapes are compiled."""
        config = self._engine.create_runtime_config()
        if not config.set_runtime_cache(self._cache):
            raise EngineError("TensorRT-RTX rejected the runtime cache: reinstall it")
        config.set_execution_context_allocation_strategy(strategy)
        if replayed:
            config.cuda_graph_strategy = self._library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._configs.append(config)
        return self._engine.create_execution_context(config)

    def save(self) -> None:
        """Write the compiled kernels, atomically."""
        with contextlib.suppress(OSError):
            partial = self._path.with_name(f"{self._path.name}.partial")
            partial.write_bytes(bytes(self._cache.serialize()))
            partial.replace(self._path)


def cache_path(bundle: Path) -> Path:
    """Beside the bundle, whose own files are listed in its manifest."""
    folder = bundle.resolve()
    return folder.with_name(f".{folder.name}.runtime-cache")
