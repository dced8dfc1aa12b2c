"""The `megrez-compile` command: options to a request, errors to one line; knows no stage."""

import json
import resource
import time
from pathlib import Path
from typing import Any

import click

from megrez.compile.calibration_options import calibration_options, text_request
from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.console_report import ConsoleReport
from megrez.compile.pipeline import Request, compile_bundle
from megrez.compile.prepare import CalibrationRequest
from megrez.engines.targets import BLOCK_SIZES, TARGETS, Target, find_target
from megrez.runtime.console import run_cli
from megrez.runtime.errors import UsageError


def _list_targets(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    rows = [("TARGET", "WEIGHTS", "THE MOST SENSITIVE", "EMBEDDING, HEAD", "ACTIVATIONS", "DEVICES")]
    for target in TARGETS:
        formats = [str(form or "float32") for form in (target.weights, target.sensitive, target.head)]
        rows.append((target.name, formats[0], formats[1], formats[2], target.activations, target.devices))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    context.exit()


@click.command("megrez-compile", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.option("--target", required=True, metavar="NAME", help="What to compile for; --list-targets shows them all.")
@click.option("-o", "--output", required=True, metavar="BUNDLE", type=click.Path(path_type=Path), help="New folder.")
@click.option("--context", type=int, metavar="N", help="Longest prompt and answer together, in tokens [4096].")
@click.option("--block-size", type=click.Choice(BLOCK_SIZES), help="Weights that share a scale [32].")
@click.option("--stage", type=click.Choice(["onnx"]), help="Stop at the calibrated graph, before the engine.")
@click.option("--quantize-head", is_flag=True, help="For targets whose lm_head stays float32: 8 bits instead.")
@click.option("--scales", type=click.Path(path_type=Path), metavar="FILE", help="Of megrez calibrate, to build from.")
@click.option("--max-kl", type=float, metavar="NATS", help="Keep as much finer as this mean KL divergence needs.")
@calibration_options
@click.option("--revision", metavar="NAME", help="Branch, tag or commit of a hub id.")
@click.option("--dummy-weights", is_flag=True, help="Seeded random weights in the shape of MODEL's config.json.")
@click.option("--layers", type=int, metavar="N", help="With --dummy-weights: so many layers instead of the config's.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of --dummy-weights.")
@click.option("--list-targets", is_flag=True, is_eager=True, expose_value=False, callback=_list_targets)
@click.option("--json", "as_json", is_flag=True, help="Print bundle, seconds and peak_rss_bytes as JSON.")
@click.version_option(package_name="megrez-compile")
def compile_command(
    model: str,
    target: str,
    output: Path,
    context: int | None,
    block_size: str | None,
    stage: str | None,
    quantize_head: bool,
    scales: Path | None,
    max_kl: float | None,
    algorithm: str | None,
    revision: str | None,
    dummy_weights: bool,
    layers: int | None,
    seed: int,
    as_json: bool,
    **text: Any,
) -> None:
    """Compile MODEL into a bundle that `megrez run` opens.

    MODEL is a Hugging Face folder or hub id, a .gguf file, or with --dummy-weights a config.json.
    """
    started = time.perf_counter()
    row = _row(target, block_size, stage, quantize_head)
    if scales is not None and algorithm is not None:
        raise UsageError("--scales were made by an algorithm already: leave --algorithm out")
    if max_kl is not None and (max_kl <= 0 or scales is not None):
        raise UsageError(f"--max-kl is {max_kl:g}: give a positive number, and no --scales, whose formats are chosen")
    checkpoint = open_checkpoint(model, dummy_weights=dummy_weights, layers=layers, seed=seed, revision=revision)
    calibration = CalibrationRequest(
        algorithm=algorithm,
        scales=scales,
        max_kl=max_kl,
        text=text_request(**text),
        weights="dummy" if dummy_weights else "checkpoint",
    )
    request = Request(checkpoint=checkpoint, target=row, output=output, context=context, calibration=calibration)
    with ConsoleReport() as report:
        bundle = compile_bundle(request, report)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if as_json:
        click.echo(json.dumps({"bundle": str(bundle), "seconds": round(seconds, 3), "peak_rss_bytes": peak}))
    else:
        click.echo(
            f"\n{bundle}: {seconds:.1f} s, {peak / 1e9:.2f} GB of memory at most; try  megrez run {bundle} PROMPT"
        )


def _row(target: str, block_size: str | None, stage: str | None, quantize_head: bool) -> Target:
    row = find_target(target)
    if row.engine == "portable" and stage is None:
        raise UsageError(f"{target}'s engine cannot be built yet: add --stage onnx for its calibrated graph")
    if row.engine != "portable" and stage is not None:
        raise UsageError(f"--stage onnx stops before an engine is built, {target} has no such step: leave it out")
    if block_size is not None:
        row = row.with_block(int(block_size))
    return row.with_head() if quantize_head else row


def main() -> None:
    run_cli(compile_command)
