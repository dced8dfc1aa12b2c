"""The `megrez-compile` command: from options to a request; knows no stage."""

import json
import shlex
import time
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from megrez.compile.backends.options import EngineOptions
from megrez.compile.calibrate.request import CalibrationRequest
from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.commands.calibration_options import CALIBRATION, calibration_options, text_request
from megrez.compile.commands.console_report import ConsoleReport
from megrez.compile.commands.default_output import default_output, output_of_staged
from megrez.compile.commands.engine_options import ENGINE, ENGINE_OPTIONS, NPU, engine_options, engine_request
from megrez.compile.commands.sections import sectioned
from megrez.compile.commands.targets_table import as_text
from megrez.compile.graph.precision import fit_block_size
from megrez.compile.pipeline import Request, compile_bundle
from megrez.compile.staged import build_staged, is_bundle
from megrez.engines.targets import BLOCK_SIZES, CHANNEL, KV_DTYPES, Target, find_target
from megrez.runtime import text as text_codec
from megrez.runtime.bench.environment import peak_rss_bytes
from megrez.runtime.bundle import open_bundle
from megrez.runtime.console import run_cli
from megrez.runtime.errors import UsageError


def _list_targets(context: click.Context, _: click.Parameter, given: bool) -> None:
    if given:
        click.echo(as_text())
        context.exit()


SECTIONS = {
    "Common": ("--target", "--output", "--context", "--stage", "--list-targets", "--json"),
    "Model": ("--revision", "--dummy-weights", "--layers", "--seed"),
    "Precision": ("--block-size", "--quantize-head", "--kv", "--max-kl"),
    "Calibration": (*CALIBRATION, "--scales"),
    "Engine": ENGINE,
    "NPU": NPU,
}


@click.command("megrez-compile", cls=sectioned(SECTIONS), context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.option(
    "--target",
    metavar="NAME",
    help="Compile for this target, see --list-targets; required unless MODEL is a staged bundle.",
)
@click.option(
    "-o",
    "--output",
    metavar="BUNDLE",
    type=click.Path(path_type=Path),
    help="Write the bundle to this folder.  [default: MODEL's name and the target's, such as ./SmolLM2-cpu-int4]",
)
@click.option(
    "--context",
    type=int,
    metavar="N",
    help="Allow N tokens of prompt and answer together.  [default: 4096, for NPUs 1024]",
)
@click.option(
    "--stage",
    type=click.Choice(["onnx"]),
    help="Write a staged bundle: the calibrated graph, from which the engine is built later (trt-*, qnn-*).",
)
@click.option(
    "--block-size",
    type=click.Choice((*BLOCK_SIZES, CHANNEL)),
    help="Share a scale among this many weights, or fewer to avoid padding; channel for qnn-* only.  "
    "[default: the target's]",
)
@click.option("--quantize-head", is_flag=True, help="Quantise the LM head too, for trt-* targets.  [default: float16]")
@click.option(
    "--kv",
    type=click.Choice(tuple(KV_DTYPES)),
    help="Store the KV cache in this data type, for cpu-* targets.  [default: f32]",
)
@click.option(
    "--max-kl",
    type=float,
    metavar="NATS",
    help="Keep the most sensitive weights in higher precision, as few as keep the mean KL divergence from the "
    "checkpoint at most this.  [default: those of --list-targets]",
)
@click.option(
    "--scales",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Build from the scales that megrez calibrate wrote.  [default: calibrate now]",
)
@calibration_options("the target's, or rtn for cpu-* and cuda-* without a tokenizer")
@engine_options
@click.option("--revision", metavar="NAME", help="Download this branch, tag or commit of a hub id.  [default: main]")
@click.option("--dummy-weights", is_flag=True, help="Use random weights in the shape of MODEL's config.json.")
@click.option(
    "--layers", type=int, metavar="N", help="Give the model of --dummy-weights N layers.  [default: its config's]"
)
@click.option(
    "--seed", type=int, metavar="N", default=0, show_default=True, help="Generate --dummy-weights with seed N."
)
@click.option(
    "--list-targets",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_targets,
    help="List all targets with their formats and devices, and exit.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print bundle, seconds and peak_rss_bytes as JSON instead of text."
)
@click.version_option(package_name="megrez-compile")
def compile_command(model: str, target: str | None, output: Path | None, as_json: bool, **options: Any) -> None:
    """Compile MODEL into a bundle that `megrez run` opens.

    MODEL is a Hugging Face folder or hub id, a .gguf file, a staged bundle (see --stage), or a config.json with
    --dummy-weights.
    """
    started = time.perf_counter()
    engine = engine_request(**{name: options.pop(name) for name in ENGINE_OPTIONS})
    with ConsoleReport() as report:
        if is_bundle(model):
            _refuse_checkpoint_options(model, options)
            output = output or output_of_staged(model, open_bundle(model).manifest.target)
            bundle = build_staged(model, target, output, engine, report)
        elif target is None:
            raise UsageError("--target is missing: name one of those that  megrez-compile --list-targets  shows")
        else:
            staged = options["stage"] is not None
            output = output or default_output(model, find_target(target).name, staged=staged)
            bundle = compile_bundle(_request(model, target, output, engine, **options), report)
    _print_result(bundle, time.perf_counter() - started, as_json=as_json)


def _print_result(bundle: Path, seconds: float, *, as_json: bool) -> None:
    peak = peak_rss_bytes()
    if as_json:
        click.echo(json.dumps({"bundle": str(bundle), "seconds": round(seconds, 3), "peak_rss_bytes": peak}))
    else:
        click.echo(f"\n{bundle}: {seconds:.1f} s, {peak / 1e9:.2f} GB of memory at most; try  {_next_command(bundle)}")


def _next_command(bundle: Path) -> str:
    """A command to try on it on this machine."""
    opened = open_bundle(bundle)
    target, path = find_target(opened.manifest.target), shlex.quote(str(bundle))
    if opened.manifest.engine != target.engine:
        target = target.staged()
    elif not target.runs_here:
        return f"megrez inspect {path}  here, and  megrez run {path} PROMPT  on its device"
    if not target.runs_here:
        return f"megrez inspect {path}"
    has_text = opened.find(text_codec.FILE_NAME) is not None
    return f"megrez run {path} PROMPT" if has_text else f"megrez bench {path}"


def _request(
    model: str,
    target: str,
    output: Path,
    engine: EngineOptions,
    *,
    context: int | None,
    block_size: str | None,
    stage: str | None,
    quantize_head: bool,
    kv: str | None,
    scales: Path | None,
    max_kl: float | None,
    algorithm: str | None,
    revision: str | None,
    dummy_weights: bool,
    layers: int | None,
    seed: int,
    **text: Any,
) -> Request:
    row = _row(target, block_size, stage, quantize_head, kv)
    if scales is not None and algorithm is not None:
        raise UsageError(
            "--scales and --algorithm were both given, and scales have their algorithm: leave one of the two out"
        )
    if max_kl is not None and (not max_kl > 0 or scales is not None):
        raise UsageError(f"--max-kl is {max_kl:g}: give a positive number, and no --scales, which already have formats")
    checkpoint = open_checkpoint(model, dummy_weights=dummy_weights, layers=layers, seed=seed, revision=revision)
    row = fit_block_size(row, checkpoint.config, requested=block_size is not None)
    calibration = CalibrationRequest(
        algorithm=algorithm,
        scales=scales,
        max_kl=max_kl,
        text=text_request(**text),
        weights="dummy" if dummy_weights else "checkpoint",
    )
    return Request(
        checkpoint=checkpoint, target=row, output=output, context=context, calibration=calibration, engine=engine
    )


def _refuse_checkpoint_options(model: str, options: dict[str, Any]) -> None:
    """Raise UsageError for options that a staged bundle already has."""
    context = click.get_current_context()
    given = [name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        raise UsageError(
            f"{model} is a staged bundle, --{given[0].replace('_', '-')} was settled when it was written: leave it out"
        )


def _row(target: str, block_size: str | None, stage: str | None, quantize_head: bool, kv: str | None) -> Target:
    row = find_target(target) if stage is None else find_target(target).staged()
    if block_size is not None:
        row = row.with_block(None if block_size == CHANNEL else int(block_size))
    if kv is not None:
        row = row.with_kv(kv)
    return row.with_head() if quantize_head else row


def main() -> None:
    run_cli(compile_command)
