"""The options of `megrez bench` that say what is asked of the model; knows no engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from megrez.runtime.bench.presets import megrez_card
from megrez.runtime.bench.settings import (
    DEFAULT_TOKENS,
    REPEAT,
    REQUESTS_PER_STREAM,
    Load,
    Span,
    parse_counts,
    parse_depths,
)
from megrez.runtime.errors import UsageError

Decorated = TypeVar("Decorated", bound=Callable[..., object])
Given = dict[str, Any]

_GIVEN = "megrez.bench"
# Options that measure many requests instead of a bare session.
_LOAD = {
    "concurrency": "--concurrency",
    "requests": "--requests",
    "request_rate": "--request-rate",
    "duration_s": "--duration",
    "dataset": "--dataset",
    "chat": "--chat",
    "ignore_eos": "--ignore-eos",
    "temperature": "--temperature",
    "preset": "--preset",
    "warmup": "--warmup",
}
_NAMES = {
    **_LOAD,
    "prompt": "--prompt-tokens",
    "output": "--output-tokens",
    "lengths": "--lengths",
    "depths": "--depths",
    "repeat": "--repeat",
    "seed": "--seed",
}
CARD, NEEDLE, LONG_CONTEXT = "megrez-card", "needle", "long-context"
# What each preset leaves open.
_OPEN = {
    CARD: frozenset({"preset", "repeat", "seed", "requests", "warmup"}),
    NEEDLE: frozenset({"preset", "repeat", "seed", "lengths", "depths"}),
    LONG_CONTEXT: frozenset({"preset", "repeat", "seed", "lengths"}),
}


def load_options(function: Decorated) -> Decorated:
    """Add the options; `given_options` has those that were given."""
    for names, settings in reversed(_OPTIONS):
        function = click.option(*names, expose_value=False, **{"callback": _keep, **settings})(function)
    return function


def given_options() -> Given:
    """By the names of the fields of Load; `prompt` and `output` are numbers of tokens.

    Raises UsageError for options that a preset fixes, and for those of presets alone.
    """
    found: Given = click.get_current_context().meta.get(_GIVEN, {})
    preset = found.get("preset")
    if preset is not None and (fixed := [_NAMES[name] for name in found if name not in _OPEN[preset]]):
        raise UsageError(f"--preset {preset} fixes {fixed[0]}: leave that one out")
    if preset is None and (lone := [_NAMES[name] for name in ("lengths", "depths") if name in found]):
        raise UsageError(f"{lone[0]} is for --preset {NEEDLE} and {LONG_CONTEXT}: give one, or leave it out")
    return found


def is_load(given: Given) -> bool:
    """Whether requests are measured; otherwise it is a bare session."""
    return any(name in given for name in _LOAD)


def read_load(given: Given) -> Load:
    """The workload that the options describe; raises UsageError where they do not fit together."""
    if given.get("preset") == CARD:
        return megrez_card(
            requests=given.get("requests"),
            warmup=given.get("warmup"),
            repeat=given.get("repeat"),
            seed=given.get("seed", 0),
        )
    rate, duration = given.get("request_rate"), given.get("duration_s")
    concurrency: int | None = given.get("concurrency", None if rate else 1)
    requests = given.get("requests", None if duration else REQUESTS_PER_STREAM * (concurrency or 1))
    dataset = given.get("dataset")
    some = Span(DEFAULT_TOKENS, DEFAULT_TOKENS)
    if dataset is None and "ignore_eos" in given:
        raise UsageError("--ignore-eos is for --dataset: answers to random prompts have no stop token anyway")
    if dataset is not None and "prompt" in given:
        raise UsageError("--prompt-tokens is the length of random prompts: leave it or --dataset out")
    return Load(
        requests=requests,
        duration_s=duration,
        concurrency=concurrency,
        request_rate=rate,
        prompt_tokens=given.get("prompt", some),
        output_tokens=given.get("output", None if dataset else some),
        dataset=dataset,
        chat=given.get("chat", False),
        ignore_eos=dataset is None or given.get("ignore_eos", False),
        temperature=given.get("temperature", 0.0),
        warmup=given.get("warmup", concurrency or 1),
        repeat=given.get("repeat", REPEAT),
        seed=given.get("seed", 0),
    )


def read_latency(given: Given) -> tuple[int, int]:
    """Prompt and output tokens of the bare session; raises UsageError for a range, and for less than 2 to generate."""
    some = Span(DEFAULT_TOKENS, DEFAULT_TOKENS)
    prompt, output = given.get("prompt", some), given.get("output", some)
    if not (prompt.is_fixed and output.is_fixed):
        raise UsageError("a range of tokens needs several requests: give --concurrency or --requests too")
    if output.low < 2:
        raise UsageError("--output-tokens is 1: decoding is measured from the second token on, give 2 or more")
    return prompt.low, output.low


def _keep_parsed(parse: Callable[[str], object]) -> Callable[[click.Context, click.Parameter, str | None], None]:
    return lambda context, option, value: _keep(context, option, None if value is None else parse(value))


def _keep(context: click.Context, option: click.Parameter, value: object) -> None:
    if value is not None and value is not False:
        context.meta.setdefault(_GIVEN, {})[option.name] = value


_OPTIONS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("--concurrency",), {"type": click.IntRange(min=1), "metavar": "C", "help": "Most requests in flight."}),
    (
        ("--requests",),
        {
            "type": click.IntRange(min=1),
            "metavar": "N",
            "help": f"Requests per repetition.  [default: {REQUESTS_PER_STREAM} x C]",
        },
    ),
    (
        ("--request-rate",),
        {
            "type": click.FloatRange(min=0, min_open=True),
            "metavar": "R",
            "help": "Requests per second, arriving as a Poisson process.",
        },
    ),
    (
        ("--duration", "duration_s"),
        {"type": click.FloatRange(min=0, min_open=True), "metavar": "S", "help": "Send no request after S seconds."},
    ),
    (
        ("--prompt-tokens", "prompt"),
        {
            "metavar": "N[:M]",
            "callback": _keep_parsed(Span.parse),
            "help": f"Tokens of a random prompt, a range, or MEAN~DEVIATION.  [default: {DEFAULT_TOKENS}]",
        },
    ),
    (
        ("--output-tokens", "output"),
        {
            "metavar": "N[:M]",
            "callback": _keep_parsed(Span.parse),
            "help": f"Tokens to generate, likewise.  [default: {DEFAULT_TOKENS}; of a dataset its answers']",
        },
    ),
    (
        ("--dataset",),
        {
            "type": click.Path(path_type=Path),
            "metavar": "FILE",
            "help": 'Prompts in place of random ones: lines of {"prompt": "…"}, or ShareGPT\'s form.',
        },
    ),
    (("--chat",), {"is_flag": True, "help": "Send each prompt of the dataset as a user's message."}),
    (
        ("--ignore-eos",),
        {"is_flag": True, "help": "Let no answer to the dataset end early, as none to random prompts does."},
    ),
    (
        ("--temperature",),
        {"type": click.FloatRange(min=0, max=2), "help": "0 takes the likeliest token.  [default: 0]"},
    ),
    (
        ("--preset",),
        {
            "type": click.Choice([CARD, NEEDLE, LONG_CONTEXT]),
            "help": "The model card's protocol; a fact hidden in long prompts; the cost of a token by context.",
        },
    ),
    (
        ("--lengths",),
        {
            "metavar": "N,N,…",
            "callback": _keep_parsed(parse_counts),
            "help": "Tokens of the presets' prompts.  [default: up to the context]",
        },
    ),
    (
        ("--depths",),
        {
            "metavar": "P,P,…",
            "callback": _keep_parsed(parse_depths),
            "help": "Where the needle lies, in per cent of the prompt.  [default: ten from 0 to 100]",
        },
    ),
    (
        ("--warmup",),
        {
            "type": click.IntRange(min=0),
            "metavar": "N",
            "help": "Requests before the first repetition, which do not count.  [default: C]",
        },
    ),
    (("--repeat",), {"type": click.IntRange(min=1), "help": f"Repetitions.  [default: {REPEAT}; of a preset 1]"}),
    (("--seed",), {"type": click.IntRange(min=0), "help": "Of prompts, lengths and arrival times.  [default: 0]"}),
]
