"""`megrez bench`: the speed of a bundle or of a server; `compare`, `report` and `sweep` are commands beside it."""

import importlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from megrez.runtime.bench.settings import REPEAT
from megrez.runtime.commands.bench_options import (
    LONG_CONTEXT,
    NEEDLE,
    Given,
    given_options,
    is_load,
    load_options,
    read_latency,
    read_load,
)
from megrez.runtime.commands.bench_output import progress, report
from megrez.runtime.commands.options import draft_option, json_file_option, json_option, threads_option
from megrez.runtime.errors import UsageError

if TYPE_CHECKING:
    from megrez.runtime.bench.run import Opening, Server
    from megrez.runtime.bundle import Bundle
    from megrez.runtime.serving.drafting.choose import Speculate

# Imported on use.
_COMMANDS = {
    "compare": "megrez.runtime.commands.bench_files:compare_command",
    "report": "megrez.runtime.commands.bench_files:report_command",
    "sweep": "megrez.runtime.commands.bench_sweep:sweep_command",
}


class BenchCommand(click.Command):
    """A name of _COMMANDS as the first argument is a command of its own; a bundle of that name is ./compare."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args and args[0] in _COMMANDS:
            module, name = _COMMANDS[args[0]].split(":")
            command: click.Command = getattr(importlib.import_module(module), name)
            return command.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, context: click.Context) -> Any:
        return super().invoke(context) if context.command is self else context.command.invoke(context)


@click.command("bench", cls=BenchCommand)
@click.argument("bundle", metavar="BUNDLE", required=False)
@click.option("--url", help="Measure this server; BUNDLE, if it is given, is what it serves.")
@load_options
@click.option("--slots", type=click.IntRange(min=1), help="Sequences that run at once.  [default: C, or 1]")
@click.option("--context", type=click.IntRange(min=1), help="Tokens that a slot holds.  [default: what requests need]")
@click.option("--model", help="Model to ask a server for.  [default: the first that it lists]")
@click.option("--api-key", envvar="MEGREZ_API_KEY", metavar="KEY", help="Key of the server.  [env: MEGREZ_API_KEY]")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=300,
    show_default=True,
    metavar="S",
    help="Give a server up that is silent for S seconds.",
)
@click.option(
    "--speculate",
    type=click.Choice(["auto", "always", "off"]),
    help="As of  megrez run.  [default: auto with --dataset or --draft; off for random prompts]",
)
@draft_option
@threads_option
@json_option
@json_file_option
def bench_command(
    bundle: str | None,
    url: str | None,
    slots: int | None,
    context: int | None,
    model: str | None,
    api_key: str | None,
    timeout_s: float,
    speculate: "Speculate | None",
    draft: str | None,
    threads: int | None,
    as_json: bool,
    json_file: Path | None,
) -> None:
    """Measure speed and memory.

    \b
    megrez bench BUNDLE                           prefill and decode without other requests
    megrez bench BUNDLE --concurrency 8           many requests at once, in this process
    megrez bench --url http://HOST:PORT ...       requests to a server, over HTTP; also unix:PATH
    megrez bench BUNDLE --preset needle           a fact found again in long prompts
    megrez bench BUNDLE --preset long-context     the cost of a token as the context fills
    megrez bench sweep BUNDLE ...                 every combination of batch, prompt and context
    megrez bench report A.json ... -o FOLDER      Markdown and pictures of results
    megrez bench compare A.json B.json            two results, written with --json-file

    Prompts are random tokens unless there is a --dataset, and answers to them do not end early.
    """
    from megrez.runtime.bench.run import Opening, Server
    from megrez.runtime.bundle import open_bundle

    given = given_options()
    opened = None if bundle is None else open_bundle(bundle)
    engine = Opening(slots=slots, context=context, threads=threads, speculate=speculate, draft=draft)
    if url is not None:
        _refuse(asdict(engine), "is the server's own matter: give it to  megrez serve")
        found = _remote(Server(url=url, model=model, api_key=api_key, timeout_s=timeout_s), opened, given)
    elif opened is None:
        raise click.UsageError(f"Missing argument 'BUNDLE': give one, or --url, or one of {', '.join(_COMMANDS)}")
    elif is_load(given) and given.get("preset") not in (NEEDLE, LONG_CONTEXT):
        found = _local(opened, given, engine)
    else:
        drafting = {"speculate": speculate, "draft": draft}
        _refuse(drafting, "needs requests, a bare session drafts nothing: give --concurrency and no such preset")
        of_session = _preset if given.get("preset") else _latency
        found = of_session(opened, given, engine)
    report(found, as_json=as_json, json_file=json_file)


def _refuse(options: dict[str, Any], why: str) -> None:
    """Raise UsageError for the first option that was given."""
    if named := [name for name, value in options.items() if value]:
        raise UsageError(f"--{named[0]} {why}")


def _remote(server: "Server", bundle: "Bundle | None", given: Given) -> dict[str, Any]:
    from megrez.runtime.bench.run import run_remote

    if given.get("preset") in (NEEDLE, LONG_CONTEXT):
        raise UsageError(f"--preset {given['preset']} measures a bundle: leave --url out")
    load = read_load(given)
    with progress(load.all_requests) as live:
        return run_remote(server, load, bundle=bundle, live=live)


def _local(bundle: "Bundle", given: Given, engine: "Opening") -> dict[str, Any]:
    from megrez.runtime.bench.run import run_local

    load = read_load(given)
    with progress(load.all_requests) as live:
        return run_local(bundle, load, engine, live=live)


def _latency(bundle: "Bundle", given: Given, engine: "Opening") -> dict[str, Any]:
    from megrez.runtime.bench.run import run_latency

    prompt_tokens, output_tokens = read_latency(given)
    return run_latency(
        bundle,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        repeat=given.get("repeat", REPEAT),
        slots=engine.slots or 1,
        context=engine.context,
        threads=engine.threads,
        seed=given.get("seed", 0),
    )


def _preset(bundle: "Bundle", given: Given, engine: "Opening") -> dict[str, Any]:
    from megrez.runtime.bench.run_presets import run_long_context, run_needle

    if engine.slots is not None:
        raise UsageError(f"--preset {given['preset']} fixes --slots: leave that one out")
    lengths, depths, seed = given.get("lengths"), given.get("depths"), given.get("seed", 0)
    opened = {"context": engine.context, "threads": engine.threads, "seed": seed}
    if given["preset"] == NEEDLE:
        with progress(None, "cells") as live:
            return run_needle(
                bundle, lengths=lengths, depths=depths, repeat=given.get("repeat", 1), **opened, live=live
            )
    with progress(None, "lengths") as live:
        return run_long_context(bundle, lengths=lengths, repeat=given.get("repeat", REPEAT), **opened, live=live)
