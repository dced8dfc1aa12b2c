"""Tiny compiled models, each compiled once per process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megrez.compile.calibrate.request import CalibrationRequest
from megrez.compile.calibrate.text import TextRequest
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


# No fidelity is stated: to measure it takes ten times as long as to compile.
BRIEF = CalibrationRequest(text=TextRequest(samples=2, fidelity_tokens=0))


@pytest.fixture(scope="session")
def compiled() -> dict[str, Path]:
    """The bundles of this process."""
    return {}


@pytest.fixture
def bundle_of(
    checkpoint_of: Any, tmp_path_factory: pytest.TempPathFactory, traced_once: None, compiled: dict[str, Path]
) -> Callable[..., tuple[Path, Path]]:
    """The checkpoint of a shape and its bundle for a target; the same arguments give the same folders. Read only."""

    def make(target: str = "cpu-fp32", context: int = 24, kv: str | None = None, **shape: object) -> tuple[Path, Path]:
        folder = checkpoint_of(**shape)
        key = repr((target, context, kv, sorted(shape.items())))
        if key not in compiled:
            request = Request(
                checkpoint=open_checkpoint(str(folder)),
                target=find_target(target) if kv is None else find_target(target).with_kv(kv),
                output=tmp_path_factory.mktemp("compiled") / "bundle",
                context=context,
                calibration=BRIEF,
            )
            compiled[key] = compile_bundle(request, Silent())
        return folder, compiled[key]

    return make
