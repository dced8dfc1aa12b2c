"""The options that say what an engine is built for; knows no stage."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from megrez.engines.tensorrt.library import EXTRAS

Command = Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """arch: devices or capabilities, see find_capabilities; "native" for the GPU at hand, None for all that the library
    can build for; for NPUs one chip, see find_chip. builder: the library; None for the one that is installed.

    batch: sequences at once, at most. chunk, share_weights: of NPUs, see megrez.compile.backends.npu. See
    megrez.engines.tensorrt.plan.PlanRequest for the rest.
    """

    arch: str | None = None
    builder: str | None = None
    batch: int = 1
    workspace_bytes: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    chunk: int | None = None
    share_weights: bool = False


ANY_DEVICE = EngineOptions()


def engine_options(command: Command) -> Command:
    """Add --arch, --batch and the builders' limits; they arrive under the names that `engine_request` takes."""
    for option in reversed(
        (
            click.option(
                "--arch", metavar="NAMES", help="Devices, as rtx-4090,sm_120 or native [all the target can]; one chip."
            ),
            click.option(
                "--batch", type=int, default=ANY_DEVICE.batch, show_default=True, help="Most sequences of an engine."
            ),
            click.option(
                "--builder", type=click.Choice(tuple(EXTRAS)), help="Which TensorRT builds [what is installed]."
            ),
            click.option(
                "--workspace-mib",
                type=click.IntRange(1, 1 << 30),
                help="Most memory for intermediate results [no limit].",
            ),
            click.option("--version-compatible", is_flag=True, help="The engine opens in later TensorRT releases too."),
            click.option("--hardware-compatible", is_flag=True, help="The engine runs on SM80 and later (TensorRT)."),
            click.option("--chunk", type=int, metavar="N", help="Tokens of a prompt in one step of an NPU [64]."),
            click.option("--share-weights", is_flag=True, help="One copy of an NPU's weights: half the size."),
        )
    ):
        command = option(command)
    return command


ENGINE_OPTIONS = (
    "arch",
    "batch",
    "builder",
    "workspace_mib",
    "version_compatible",
    "hardware_compatible",
    "chunk",
    "share_weights",
)


def engine_request(workspace_mib: int | None, **options: Any) -> EngineOptions:
    return EngineOptions(workspace_bytes=None if workspace_mib is None else workspace_mib << 20, **options)
