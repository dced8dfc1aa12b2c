"""The options that say what an engine is built for; knows no stage."""

from collections.abc import Callable
from typing import Any

import click

from megrez.compile.backends.options import ANY_DEVICE, EngineOptions
from megrez.engines.tensorrt.library import EXTRAS

Command = Callable[..., Any]


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
