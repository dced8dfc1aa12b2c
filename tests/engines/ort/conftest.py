"""Sessions of tiny compiled models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.pipeline import Request, compile_bundle
from megrez.engines.targets import find_target


class Silent:
    """A Report that tells no one."""

    def stage(self, name: str) -> None:
        pass

    def weights(self, total: int) -> Callable[[int], None]:
        return lambda written: None

    def layers(self, total: int) -> Callable[[int], None]:
        return lambda done: None


@pytest.fixture
def bundle_of(checkpoint_of: Any, tmp_path: Path, traced_once: None) -> Callable[..., tuple[Path, Path]]:
    """Compile the checkpoint of a shape for a target: (checkpoint, bundle)."""

    def make(target: str = "cpu-fp32", context: int = 24, kv: str | None = None, **shape: object) -> tuple[Path, Path]:
        folder = checkpoint_of(**shape)
        request = Request(
            checkpoint=open_checkpoint(str(folder)),
            target=find_target(target) if kv is None else find_target(target).with_kv(kv),
            output=tmp_path / f"bundle{kv or ''}",
            context=context,
        )
        return folder, compile_bundle(request, Silent())

    return make
