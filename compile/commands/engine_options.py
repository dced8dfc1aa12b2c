"""The options of building an engine; knows no stage."""

from collections.abc import Callable
from typing import Any

import click

from megrez.compile.backends.options import ANY_DEVICE, EngineOptions
from megrez.engines.tensorrt.library import EXTRAS

Command = Callable[..., Any]
ENGINE = (
    "--arch",
    "--batch",
    "--builder",
    "--workspace-mib",
    "--version-compatible",
    "--hardware-compatible",
)
NPU = ("--chunk", "--share-weights")
# The names of their parameters.
ENGINE_OPTIONS = tuple(name.removeprefix("--").replace("-", "_") for name in (*ENGINE, *NPU))


def engine_options(command: Command) -> Command:
    """Add the options ENGINE and NPU; their names are ENGINE_OPTIONS, the parameters of `engine_request`."""
    for option in reversed(
        (
            click.option(
                "--arch",
                metavar="NAMES",
                help="Build for these GPUs, such as rtx-4090,sm_120 or native, or for one NPU chip.  "
                "[default: every GPU that the library supports]",
            ),
            click.option(
                "--batch",
                type=int,
                metavar="N",
                default=ANY_DEVICE.batch,
                show_default=True,
                help="Let a TensorRT engine run up to N sequences at once.",
            ),
            click.option(
                "--builder",
                type=click.Choice(tuple(EXTRAS)),
                help="Build with this TensorRT library.  [default: the installed one]",
            ),
            click.option(
                "--workspace-mib",
                type=click.IntRange(1, 1 << 30),
                metavar="MIB",
                help="Limit TensorRT's memory for intermediate results.  [default: no limit]",
            ),
            click.option(
                "--version-compatible", is_flag=True, help="Build an engine that later TensorRT releases can open."
            ),
            click.option(
                "--hardware-compatible",
                is_flag=True,
                help="Build an engine for SM80 and all later GPUs; TensorRT only, not TensorRT-RTX.",
            ),
            click.option("--chunk", type=int, metavar="N", help="Process N prompt tokens in each step.  [default: 64]"),
            click.option(
                "--share-weights",
                is_flag=True,
                help="Share the weights of prefill and decode in one context, which the emulator cannot open.",
            ),
        )
    ):
        command = option(command)
    return command


def engine_request(workspace_mib: int | None, **options: Any) -> EngineOptions:
    return EngineOptions(workspace_bytes=None if workspace_mib is None else workspace_mib << 20, **options)
