"""`megrez bench`: the speed of a bundle or of a server; `megrez bench compare`: two results side by side."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from megrez.runtime.commands.bench_options import given_options, is_load, load_options, read_latency, read_load
from megrez.runtime.commands.options import draft_option, json_file_option, json_option, show, threads_option
from megrez.runtime.errors import MegrezError, UsageError

if TYPE_CHECKING:
    from megrez.runtime.bench.drive import Note
    from megrez.runtime.bench.settings import Load
    from megrez.runtime.serving.drafting.choose import Speculate


@click.command("compare")
@click.argument("a", metavar="A.json", type=click.Path(path_type=Path))
@click.argument("b", metavar="B.json", type=click.Path(path_type=Path))
@json_option
@json_file_option
def compare_command(a: Path, b: Path, as_json: bool, json_file: Path | None) -> None:
    """Compare two results that --json-file wrote: medians, ratios, and which is better beyond the spread."""
    from megrez.runtime.bench.compare import compare, comparison_json, comparison_table, differences, read_result

    first, second = read_result(a), read_result(b)
    rows, differing = compare(first, second, (a.name, b.name)), differences(first, second)
    show(comparison_table(rows, differing), comparison_json(rows, differing), as_json=as_json, json_file=json_file)


class BenchCommand(click.Command):
    """`compare` as the first argument is a command of its own; a bundle of that name is ./compare."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] == ["compare"]:
            return compare_command.make_context(f"{info_name} compare", args[1:], parent, **extra)
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
    megrez bench --url http://HOST:PORT ...       requests to a server, over HTTP
    megrez bench compare A.json B.json            two results, written with --json-file

    Prompts are random tokens unless there is a --dataset, and answers to them do not end early.
    """
    from megrez.runtime.bench import run
    from megrez.runtime.bench.settings import REPEAT
    from megrez.runtime.bundle import open_bundle

    given = given_options()
    opened = None if bundle is None else open_bundle(bundle)
    drafting = {"speculate": speculate, "draft": draft}
    if url is not None:
        engine = {"slots": slots, "context": context, "threads": threads, **drafting}
        if named := [name for name, value in engine.items() if value]:
            raise UsageError(f"--{named[0]} is the server's own matter: give it to  megrez serve")
        load = read_load(given)
        found = run.run_remote(
            url, load, model=model, api_key=api_key, timeout_s=timeout_s, bundle=opened, note=_progress(load)
        )
    elif opened is None:
        raise click.UsageError("Missing argument 'BUNDLE': give one, or --url, or  compare A.json B.json")
    elif is_load(given):
        load = read_load(given)
        found = run.run_local(
            opened,
            load,
            slots=slots,
            context=context,
            threads=threads,
            note=_progress(load),
            speculate=speculate,
            draft=draft,
        )
    else:
        if named := [name for name, value in drafting.items() if value]:
            raise UsageError(f"--{named[0]} needs requests, a bare session drafts nothing: give --concurrency too")
        prompt_tokens, output_tokens = read_latency(given)
        found = run.run_latency(
            opened,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            repeat=given.get("repeat", REPEAT),
            slots=slots or 1,
            context=context,
            threads=threads,
            seed=given.get("seed", 0),
        )
    _report(found, as_json=as_json, json_file=json_file)


def _report(found: dict[str, Any], *, as_json: bool, json_file: Path | None) -> None:
    """Show and write the result; a run that ended early is then an error."""
    from megrez.runtime.bench.figures import spread_warning
    from megrez.runtime.bench.run import INTERRUPTED
    from megrez.runtime.bench.table import chunk_warning, table

    show(table(found), json.dumps(found, indent=2, ensure_ascii=False), as_json=as_json, json_file=json_file)
    for warning in (spread_warning(found["spread"], found["environment"]["load_average_before"]), chunk_warning(found)):
        if warning:
            click.echo(f"warning: {warning}", err=True)
    if found["stopped"] is None:
        return
    kept = f"{found['stopped']}: the figures are of what was complete by then"
    if found["stopped"] == INTERRUPTED:
        click.echo(kept, err=True)
        raise click.Abort
    raise MegrezError(kept)


def _progress(load: "Load") -> "Note":
    """A line on a terminal that counts requests."""
    from megrez.runtime.bench.figures import Record

    total = None if load.requests is None else load.requests * load.repeat
    done = failed = 0

    def note(record: Record) -> None:
        nonlocal done, failed
        done += 1
        failed += record.error is not None
        of, wrong = f" of {total}" if total else "", f", {failed} failed" if failed else ""
        end = "\n" if done == total else ""
        click.echo(f"\r{done}{of} requests{wrong}", nl=False, err=True)
        click.echo(end, nl=False, err=True)

    return note if sys.stderr is not None and sys.stderr.isatty() else lambda record: None
