"""TensorRT-RTX's kernels, compiled for one GPU at first use and kept beside the bundle; knows no session."""

import contextlib
from pathlib import Path
from typing import Any

from megrez.runtime.errors import EngineError


class RuntimeCache:
    """What contexts of `engine` compile. It is only a gain of time: a folder that cannot be written is let be."""

    def __init__(self, engine: Any, bundle: Path) -> None:
        self._engine = engine
        self._path = cache_path(bundle)
        self._config = engine.create_runtime_config()
        self._cache = self._config.create_runtime_cache()
        with contextlib.suppress(OSError):
            self._cache.deserialize(self._path.read_bytes())  # of another version or GPU, it is ignored
        if not self._config.set_runtime_cache(self._cache):
            raise EngineError("TensorRT-RTX takes no runtime cache here: reinstall it")

    def open_context(self, strategy: Any) -> Any:
        self._config.set_execution_context_allocation_strategy(strategy)
        return self._engine.create_execution_context(self._config)

    def save(self) -> None:
        """Write what was compiled, whole or not at all."""
        with contextlib.suppress(OSError):
            partial = self._path.with_name(f"{self._path.name}.partial")
            partial.write_bytes(bytes(self._cache.serialize()))
            partial.replace(self._path)


def cache_path(bundle: Path) -> Path:
    """Beside the bundle, whose own files are listed in its manifest."""
    folder = bundle.resolve()
    return folder.with_name(f".{folder.name}.runtime-cache")
