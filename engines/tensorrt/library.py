"""Chooses and loads TensorRT-RTX, which builds ahead of time anywhere, or TensorRT, which builds for the local GPU."""

import importlib
import importlib.util
from collections.abc import Collection
from typing import Any

from megrez.engines.devices import devices_of, spell
from megrez.runtime.errors import MissingExtraError, UsageError

RTX, ENTERPRISE = "tensorrt_rtx", "tensorrt"
EXTRAS = {RTX: "rtx", ENTERPRISE: "trt"}


def choose_library(asked: str | None) -> str:
    """The module's name: `asked`, or the first that is installed.

    Raises MissingExtraError where it is not installed.
    """
    for name in EXTRAS if asked is None else (asked,):
        if importlib.util.find_spec(name) is not None:
            return name
    missing = asked or RTX
    raise MissingExtraError(needed_for="building an engine", library=missing, extra=EXTRAS[missing])


def load_library(name: str) -> Any:
    """The module `name`. The message keeps the import error, which may name a missing CUDA library."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(needed_for="this engine", library=f"{name} ({error})", extra=EXTRAS[name]) from error


def buildable(library: Any) -> tuple[int, ...]:
    """The capabilities that TensorRT-RTX can build for without such a device; none for TensorRT."""
    names = getattr(getattr(library, "ComputeCapability", None), "__members__", {})
    return tuple(sorted(int(name[2:]) for name in names if name.startswith("SM")))


def check_buildable(library: Any, capabilities: Collection[int]) -> None:
    """Raise UsageError, with what to do instead, for capabilities that this library cannot build for."""
    known = buildable(library)
    if not known:
        raise UsageError(
            f"--arch names {spell(capabilities)}, and TensorRT builds for this machine's GPU only: leave --arch "
            "out, or run  pip install 'megrez-compile[rtx]'  to build ahead of time"
        )
    if missing := sorted(set(capabilities) - set(known)):
        raise UsageError(
            f"TensorRT-RTX {library.__version__} cannot build ahead of time for {spell(missing)} "
            f"({devices_of(missing)}), only for {spell(known)}: write the graph here with --stage onnx, and build it "
            "with TensorRT on the device"
        )
