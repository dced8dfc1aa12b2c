"""The options of calibration, shared by all commands that calibrate; knows no stage."""

from collections.abc import Callable
from pathlib import Path

import click

from megrez.compile.calibrate.stage import ALGORITHMS
from megrez.compile.calibrate.text import LARGE_SAMPLES, SAMPLES, WINDOW, TextRequest
from megrez.compile.commands.sections import Command, with_options

DEFAULT = TextRequest()
CALIBRATION = (
    "--algorithm",
    "--calib",
    "--calib-samples",
    "--calib-tokens",
    "--calib-seed",
    "--fidelity-tokens",
)


def calibration_options(algorithm: str) -> Callable[[Command], Command]:
    """Add the options CALIBRATION; their names are the parameters of `text_request`, and `algorithm`.

    algorithm: the default one, as help states it.
    """
    return with_options(
        click.option(
            "--algorithm",
            type=click.Choice(tuple(ALGORITHMS)),
            help=f"Quantise the weights by this algorithm; rtn rounds to nearest.  [default: {algorithm}]",
        ),
        click.option(
            "--calib",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="Calibrate on this .txt or .jsonl file.  "
            "[default: text sampled from the model itself, for trt-* and qnn-* Python's documentation]",
        ),
        click.option(
            "--calib-samples",
            type=int,
            metavar="N",
            help=f"Calibrate on N samples.  [default: {SAMPLES}; for cpu-* and cuda-* {LARGE_SAMPLES} above a billion "
            "parameters]",
        ),
        click.option(
            "--calib-tokens",
            type=int,
            metavar="N",
            help=f"Take N tokens per sample.  [default: {WINDOW}, or the context if that is shorter]",
        ),
        click.option(
            "--calib-seed",
            type=int,
            metavar="N",
            help="Draw the samples at random with seed N.  [default: the first ones, in order]",
        ),
        click.option(
            "--fidelity-tokens",
            type=int,
            metavar="N",
            default=DEFAULT.fidelity_tokens,
            show_default=True,
            help="Measure the fidelity on N other tokens; 0 skips it.",
        ),
    )


def text_request(
    calib: Path | None,
    calib_samples: int | None,
    calib_tokens: int | None,
    calib_seed: int | None,
    fidelity_tokens: int,
) -> TextRequest:
    return TextRequest(
        path=calib, samples=calib_samples, length=calib_tokens, seed=calib_seed, fidelity_tokens=fidelity_tokens
    )
