"""Options shared by the verbs, such as one for each field of SamplingParams."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from megrez.runtime.errors import MegrezError

if TYPE_CHECKING:
    from megrez.runtime.sampling import SamplingParams

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # generic in newer releases of click only
Decorated = TypeVar("Decorated", bound=Callable[..., object])


class Number(ParamType):
    """A number that `accepted` converts. Help shows it as N, without its range, which an error states."""

    name = "N"

    def __init__(self, accepted: ParamType) -> None:
        self._accepted = accepted

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        return self._accepted.convert(value, parameter, context)


def whole(least: int, most: int | None = None) -> Number:
    """An int from `least` to `most`."""
    return Number(click.IntRange(least, most))


bundle_argument = click.argument("bundle", metavar="BUNDLE")
threads_option = click.option(
    "--threads", type=whole(1, 1024), help="Use N CPU threads.  [default: one per physical core]"
)
verify_option = click.option("--verify", is_flag=True, help="Check the SHA-256 of every file first.")
max_tokens_option = click.option(
    "--max-tokens", type=whole(1), default=1024, show_default=True, help="Stop after N tokens."
)
system_option = click.option("--system", metavar="TEXT", help="Start the conversation with this system message.")
stop_option = click.option(
    "--stop", multiple=True, metavar="STRING", help="End the answer before this string. May be given several times."
)
speculate_option = click.option(
    "--speculate",
    type=click.Choice(["auto", "always", "off"]),
    default="auto",
    show_default=True,
    help="Draft tokens and verify several in one step: where it pays, always, or never.",
)
draft_option = click.option(
    "--draft",
    metavar="BUNDLE",
    help="Draft with this smaller model, which needs the same tokenizer.  [default: look tokens up in the text]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
json_file_option = click.option(
    "--json-file", type=click.Path(path_type=Path), metavar="FILE", help="Also write this JSON to FILE."
)

_GIVEN = "megrez.sampling"
_BIAS = "--logit-bias"
_SAMPLING: dict[str, tuple[type | ParamType, str]] = {
    "--temperature": (float, "Divide the logits by this; 0 takes the most probable token.  [default: the bundle's]"),
    "--top-k": (Number(click.INT), "Sample from the N most probable tokens; 0 is off.  [default: the bundle's]"),
    "--top-p": (
        float,
        "Sample from the fewest tokens whose probabilities sum to this; 1 is off.  [default: the bundle's]",
    ),
    "--min-p": (
        float,
        "Exclude tokens less probable than this times the most probable one; 0 is off.  [default: the bundle's]",
    ),
    "--repetition-penalty": (
        float,
        "Penalise tokens that occur in the prompt or the output; 1 is off.  [default: the bundle's]",
    ),
    "--presence-penalty": (
        float,
        "Subtract this from the logits of tokens that occur in the output; 0 is off.  [default: 0]",
    ),
    "--frequency-penalty": (
        float,
        "Subtract this from a token's logit for each occurrence in the output; 0 is off.  [default: 0]",
    ),
    "--seed": (Number(click.INT), "Sample with seed N.  [default: a random one]"),
}


def sampling_options(function: Decorated) -> Decorated:
    """Add one option per field of SamplingParams; `chosen_sampling` reads those that were given."""
    function = click.option(
        _BIAS,
        multiple=True,
        metavar="ID=VALUE",
        help="Add VALUE, -100 to 100, to the logit of token ID. May be given several times.",
        expose_value=False,
        callback=_keep_biases,
    )(function)
    for name, (kind, help_line) in reversed(_SAMPLING.items()):
        function = click.option(name, type=kind, help=help_line, expose_value=False, callback=_keep)(function)
    return function


def chosen_sampling(defaults: SamplingParams) -> SamplingParams:
    """`defaults`, overridden by the sampling options on the command line."""
    return dataclasses.replace(defaults, **click.get_current_context().meta.get(_GIVEN, {}))


def _keep(context: click.Context, option: click.Parameter, value: float | int | None) -> None:
    if value is not None:
        context.meta.setdefault(_GIVEN, {})[option.name] = value


def _keep_biases(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> None:
    try:
        pairs = [(int(token), float(value)) for token, _, value in (text.partition("=") for text in given)]
    except ValueError as error:
        raise click.BadParameter(f"{', '.join(given)}: give a token id and a number, as 42=-5") from error
    if pairs:
        context.meta.setdefault(_GIVEN, {})[option.name] = dict(pairs)


def show(text: str, json_text: str, *, as_json: bool, json_file: Path | None) -> None:
    """Print a verb's result as `text`, or with --json as `json_text`; write the latter to --json-file."""
    click.echo(json_text.rstrip("\n") if as_json else text)
    if json_file is not None:
        write_json(json_file, json_text)


def write_json(path: Path, json_text: str) -> None:
    """Write the file of --json-file; raises MegrezError if it cannot be written."""
    try:
        path.write_text(json_text.rstrip("\n") + "\n", encoding="utf-8")
    except OSError as error:
        raise MegrezError(f"--json-file {path} cannot be written ({error.strerror}): choose another file") from error
