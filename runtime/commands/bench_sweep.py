"""`megrez bench sweep`: one benchmark at every combination of batch, prompt length and context."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from megrez.runtime.bench.settings import DEFAULT_TOKENS, REPEAT, REQUESTS_PER_STREAM, Load, Span, parse_counts
from megrez.runtime.bench.sweep import Grid, Point, run_sweep
from megrez.runtime.commands.bench_output import progress, report
from megrez.runtime.commands.options import json_file_option, json_option, threads_option, whole
from megrez.runtime.errors import UsageError

if TYPE_CHECKING:
    from megrez.runtime.bench.run import Server
    from megrez.runtime.bundle import Bundle


@click.command("sweep")
@click.argument("bundle", metavar="BUNDLE", required=False)
@click.option("--url", help="Measure this server; BUNDLE, if it is given, is what it serves.")
@click.option("--concurrency", metavar="C,C,…", help="Requests in flight, in this process or of the server.")
@click.option(
    "--slots", metavar="S,S,…", help="In place of requests: sequences of a bare session, which decode together."
)
@click.option("--prompt-tokens", "prompts", metavar="N,N,…", default=str(DEFAULT_TOKENS), show_default=True)
@click.option("--context", "contexts", metavar="N,N,…", help="Tokens per slot.  [default: what requests need]")
@click.option("--output-tokens", type=whole(2), default=DEFAULT_TOKENS, show_default=True)
@click.option("--requests", type=whole(1), help=f"Requests per repetition.  [default: {REQUESTS_PER_STREAM} x C]")
@click.option("--repeat", type=whole(1), default=REPEAT, show_default=True, help="Repetitions of each point.")
@click.option("--seed", type=whole(0), default=0, show_default=True, help="Of prompts.")
@click.option("--model", help="Model to ask a server for.  [default: the first that it lists]")
@click.option("--api-key", envvar="MEGREZ_API_KEY", metavar="KEY", help="Key of the server.  [env: MEGREZ_API_KEY]")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), default=300, show_default=True)
@threads_option
@json_option
@json_file_option
def sweep_command(
    bundle: str | None,
    url: str | None,
    concurrency: str | None,
    slots: str | None,
    prompts: str,
    contexts: str | None,
    output_tokens: int,
    requests: int | None,
    repeat: int,
    seed: int,
    model: str | None,
    api_key: str | None,
    timeout_s: float,
    threads: int | None,
    as_json: bool,
    json_file: Path | None,
) -> None:
    """Measure every combination of batch, prompt length and context, and keep all results in one file.

    \b
    megrez bench sweep BUNDLE --concurrency 1,2,4,8 --prompt-tokens 128,1024 --json-file sweep.json
    megrez bench sweep BUNDLE --slots 1,4,16 --context 2048,4096
    megrez bench report sweep.json -o report
    """
    from megrez.runtime.bench.run import Server
    from megrez.runtime.bundle import open_bundle

    opened = None if bundle is None else open_bundle(bundle)
    _check(opened, url, concurrency, slots, contexts)
    grid = Grid(
        batches=parse_counts(slots or concurrency or "1"),
        prompts=parse_counts(prompts),
        contexts=(None,) if contexts is None else parse_counts(contexts),
    )
    grid.check(output_tokens, None if opened is None else opened.manifest.context_length)

    server = None if url is None else Server(url=url, model=model, api_key=api_key, timeout_s=timeout_s)
    lengths = Lengths(output_tokens=output_tokens, requests=requests, repeat=repeat, seed=seed)

    def measure(point: Point) -> dict[str, Any]:
        if server is not None:
            return _remote(server, opened, point, lengths)
        assert opened is not None
        return (_local if slots is None else _bare)(opened, point, lengths, threads)

    def note(point: Point, found: dict[str, Any]) -> None:
        speed = found.get("aggregate_output_tokens_per_s", found.get("decode_tokens_per_s"))
        click.echo(f"batch {point.batch}, prompt {point.prompt_tokens}: {speed:.1f} tokens/s", err=True)

    report(run_sweep(grid, measure, note), as_json=as_json, json_file=json_file)


def _check(
    bundle: "Bundle | None", url: str | None, concurrency: str | None, slots: str | None, contexts: str | None
) -> None:
    """Raise UsageError where the options do not fit together."""
    if bundle is None and url is None:
        raise click.UsageError("Missing argument 'BUNDLE': give one, or --url")
    if slots is not None and (concurrency is not None or url is not None):
        raise UsageError("--slots measures a bare session, without requests: leave --concurrency and --url out")
    if url is not None and contexts is not None:
        raise UsageError("--context is the server's own matter: give it to  megrez serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """What all points share. requests: per repetition, by default REQUESTS_PER_STREAM for each in flight."""

    output_tokens: int
    requests: int | None
    repeat: int
    seed: int

    def load(self, point: Point) -> Load:
        return Load(
            requests=self.requests or REQUESTS_PER_STREAM * point.batch,
            concurrency=point.batch,
            prompt_tokens=Span(point.prompt_tokens, point.prompt_tokens),
            output_tokens=Span(self.output_tokens, self.output_tokens),
            warmup=point.batch,
            repeat=self.repeat,
            seed=self.seed,
        )


def _remote(server: "Server", bundle: "Bundle | None", point: Point, lengths: Lengths) -> dict[str, Any]:
    from megrez.runtime.bench.run import run_remote

    load = lengths.load(point)
    with progress(load.all_requests) as live:
        return run_remote(server, load, bundle=bundle, live=live)


def _local(bundle: "Bundle", point: Point, lengths: Lengths, threads: int | None) -> dict[str, Any]:
    from megrez.runtime.bench.run import Opening, run_local

    load = lengths.load(point)
    with progress(load.all_requests) as live:
        return run_local(bundle, load, Opening(context=point.context, threads=threads), live=live)


def _bare(bundle: "Bundle", point: Point, lengths: Lengths, threads: int | None) -> dict[str, Any]:
    from megrez.runtime.bench.run import run_latency

    return run_latency(
        bundle,
        prompt_tokens=point.prompt_tokens,
        output_tokens=lengths.output_tokens,
        repeat=lengths.repeat,
        slots=point.batch,
        context=point.context,
        threads=threads,
        seed=lengths.seed,
    )
