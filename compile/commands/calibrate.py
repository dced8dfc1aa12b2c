"""The verb `megrez calibrate`: writes a checkpoint's scales for later builds."""

from pathlib import Path
from typing import Any

import click

from megrez.calibration.results.record import Record
from megrez.compile.calibrate.self_generated import calibration_text, discard_generated
from megrez.compile.calibrate.space import check_space_to_calibrate
from megrez.compile.calibrate.stage import calibrate_checkpoint, quantizes_anything
from megrez.compile.calibrate.text import with_samples
from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.checkpoint.rotated import rotate_for
from megrez.compile.commands.calibration_options import CALIBRATION, calibration_options, text_request
from megrez.compile.commands.console_report import ConsoleReport
from megrez.compile.commands.sections import sectioned
from megrez.compile.graph.precision import fit_block_size
from megrez.engines.targets import find_target
from megrez.runtime.errors import UsageError

SCHEMES = {"int8": "trt-int8", "fp8": "trt-fp8", "int4": "trt-int4", "nvfp4": "trt-nvfp4"}


@click.command(
    "calibrate",
    cls=sectioned({"Common": ("--scheme", "--target", "--output", "--quantize-head"), "Calibration": CALIBRATION}),
)
@click.argument("model")
@click.option(
    "--scheme",
    type=click.Choice(tuple(SCHEMES)),
    help="Calibrate for the formats of trt-int8, trt-fp8, trt-int4 or trt-nvfp4.",
)
@click.option("--target", metavar="NAME", help="Calibrate for the formats of this target instead.")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the scales to this file.",
)
@click.option("--quantize-head", is_flag=True, help="Quantise the LM head too, for trt-* targets.  [default: float16]")
@calibration_options("the target's")
def calibrate_command(
    model: str,
    scheme: str | None,
    target: str | None,
    output: Path,
    quantize_head: bool,
    algorithm: str | None,
    **text: Any,
) -> None:
    """Calibrate MODEL and write the scales from which `megrez-compile --scales FILE` builds.

    FILE is JSON. The quantised matrices are written to a folder beside it: keep the two together. Give either --scheme
    or --target.
    """
    if (scheme is None) == (target is None):
        raise UsageError("the formats to calibrate for are missing or given twice: give one of --scheme and --target")
    row = find_target(target or SCHEMES[scheme or ""])
    row = row.with_head() if quantize_head else row
    if output.is_dir():
        raise UsageError(f"-o {output} is a folder: name the file to write, such as {output / 'scales.json'}")
    checkpoint = rotate_for(open_checkpoint(model), row)
    row = fit_block_size(row, checkpoint.config, requested=False)
    with ConsoleReport() as report:
        report.stage("checking the checkpoint")
        checkpoint.check()
        if row.weights is None or not quantizes_anything(checkpoint, row):
            raise UsageError(f"{row.name} quantises nothing of {checkpoint.source}: choose another target")
        request = with_samples(text_request(**text), checkpoint, row)
        longest = checkpoint.config.max_position_embeddings
        check_space_to_calibrate(checkpoint, row, request, longest, output, bundle=False)
        ids = calibration_text(checkpoint, row, request, longest, output, report)
        chosen = algorithm or row.algorithm
        report.stage(f"calibrating for {row.name} by {chosen} on {ids.tokens.size} tokens of {ids.source}")
        progress = report.layers(checkpoint.config.num_hidden_layers)
        record, _ = calibrate_checkpoint(checkpoint, row, chosen, ids, output, progress)
        discard_generated(output)
    _print_result(record, output)


def _print_result(record: Record, output: Path) -> None:
    worst = sorted(record.groups.items(), key=lambda item: -item[1].relative_error)[:5]
    click.echo(
        "\n" + "\n".join(f"{name:32}{group.relative_error:10.5f} relative squared error" for name, group in worst)
    )
    if record.fidelity is not None:
        found = record.fidelity
        click.echo(
            f"simulated on {found.tokens} held-out tokens: KL {found.kl_mean:.5f}, top-1 {found.top1_agreement:.4f}"
        )
    if record.zero_channels:
        click.echo(f"{record.zero_channels} channels are zero on all of the calibration data: they stay zero")
    click.echo(f"{output}: build with  megrez-compile MODEL --target {record.target} --scales {output}")
