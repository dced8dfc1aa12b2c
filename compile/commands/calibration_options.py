"""The options that say how to calibrate, the same for every command that does; knows no stage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from megrez.compile.calibrate.stage import ALGORITHMS
from megrez.compile.calibrate.text import WINDOW, TextRequest

Command = Callable[..., Any]
DEFAULT = TextRequest()


def calibration_options(command: Command) -> Command:
    """Add --algorithm, --calib… and --fidelity-tokens; they arrive under the names that `text_request` takes."""
    for option in reversed(
        (
            click.option(
                "--algorithm", type=click.Choice(tuple(ALGORITHMS)), help="How weights are rounded [the target's]."
            ),
            click.option(
                "--calib",
                metavar="FILE",
                type=click.Path(path_type=Path),
                help="Text or .jsonl to calibrate on [the model's own words, or for trt-* Python's documentation].",
            ),
            click.option(
                "--calib-samples", type=int, default=DEFAULT.samples, show_default=True, help="Samples to read."
            ),
            click.option("--calib-tokens", type=int, help=f"Tokens of a sample [{WINDOW}]."),
            click.option("--calib-seed", type=int, help="Draw samples at random [the first ones, in order]."),
            click.option(
                "--fidelity-tokens",
                type=int,
                default=DEFAULT.fidelity_tokens,
                show_default=True,
                help="Further tokens on which fidelity is measured; 0 for none.",
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
