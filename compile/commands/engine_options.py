"""The options of building an engine; knows no stage."""

from typing import Any

import click

from megrez.compile.backends.options import ANY_DEVICE, EngineOptions
from megrez.compile.commands.sections import with_options
from megrez.engines.tensorrt.library import EXTRAS
from megrez.runtime.commands.options import whole

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


# Adds the options ENGINE and NPU; their names are ENGINE_OPTIONS, the parameters of `engine_request`.
engine_options = with_options(
    click.option(
        "--arch",
        metavar="NAMES",
        help="Build for these devices. qnn-*: one chip, such as snapdragon-8-elite (required). trt-*, by "
        "TensorRT-RTX: GPUs, such as rtx-4090,sm_120, or native for this machine's.  "
        "[default: every GPU that TensorRT-RTX supports]",
    ),
    click.option(
        "--batch",
        type=int,
        metavar="N",
        default=ANY_DEVICE.batch,
        show_default=True,
        help="Build a TensorRT engine for up to N sequences at once.",
    ),
    click.option(
        "--builder",
        type=click.Choice(tuple(EXTRAS)),
        help="Build with this TensorRT library.  [default: the installed one, tensorrt_rtx of both]",
    ),
    click.option(
        "--workspace-mib",
        type=whole(1, 1 << 30),
        metavar="MIB",
        help="Limit TensorRT's memory for intermediate results to this many MiB.  [default: no limit]",
    ),
    click.option("--version-compatible", is_flag=True, help="Build an engine that later TensorRT releases can open."),
    click.option(
        "--hardware-compatible",
        is_flag=True,
        help="Build an engine for SM80 and all later GPUs; TensorRT only, not TensorRT-RTX.",
    ),
    click.option(
        "--chunk",
        type=int,
        metavar="N",
        help="Compile the graph that reads prompts for N tokens per step.  [default: 64]",
    ),
    click.option(
        "--share-weights",
        is_flag=True,
        help="Store the weights of the prefill and the decode graph once: half the size, but the emulator "
        "cannot open the bundle.",
    ),
)


def engine_request(workspace_mib: int | None, **options: Any) -> EngineOptions:
    return EngineOptions(workspace_bytes=None if workspace_mib is None else workspace_mib << 20, **options)
