"""The options of calibration, shared by all commands that calibrate; knows no stage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from megrez.compile.calibrate.stage import ALGORITHMS
from megrez.compile.calibrate.text import WINDOW, TextRequest

Command = Callable[..., Any]
DEFAULT = TextRequest()
CALIBRATION = (
    "--algorithm",
    "--calib",
    "--calib-samples",
    "--calib-tokens",
    "--calib-seed",
    "--fidelity-tokens",
)


def calibration_options(command: Command) -> Command:
    """Add the options CALIBRATION; their names are the parameters of `text_request`, and `algorithm`."""
    for option in reversed(
        (
            click.option(
                "--algorithm",
                type=click.Choice(tuple(ALGORITHMS)),
                help="Quantise the weights by this algorithm.  [default: the target's]",
            ),
            click.option(
                "--calib",
                metavar="FILE",
                type=click.Path(path_type=Path),
                help="Calibrate on this text or .jsonl file.  "
                "[default: text sampled from the model itself; for trt-* and qnn-* Python's documentation]",
            ),
            click.option(
                "--calib-samples",
                type=int,
                metavar="N",
                default=DEFAULT.samples,
                show_default=True,
                help="Calibrate on N samples.",
            ),
            click.option(
                "--calib-tokens",
                type=int,
                metavar="N",
                help=f"Read N tokens in each sample.  [default: {WINDOW}, or the context]",
            ),
            click.option(
                "--calib-seed",
                type=int,
                metavar="SEED",
                help="Draw the samples at random with this seed.  [default: the first samples, in order]",
            ),
            click.option(
                "--fidelity-tokens",
                type=int,
                metavar="N",
                default=DEFAULT.fidelity_tokens,
                show_default=True,
                help="Measure fidelity on N further tokens; 0 skips it.",
            ),
        )
    ):
        command = option(command)
    return command


def text_request(
    calib: Path | None, calib_samples: int, calib_tokens: int | None, calib_seed: int | None, fidelity_tokens: int
) -> TextRequest:
    return TextRequest(
        path=calib, samples=calib_samples, length=calib_tokens, seed=calib_seed, fidelity_tokens=fidelity_tokens
    )
