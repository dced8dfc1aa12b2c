"""`megrez bench`: speed of one stream or several, and peak memory; medians over repeats."""

import contextlib
import json
import statistics
from pathlib import Path

import click

from megrez.runtime.commands.options import bundle_argument, json_file_option, json_option, show, threads_option


@click.command("bench")
@bundle_argument
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Prompt length.")
@click.option("--output-tokens", type=click.IntRange(min=2), default=128, show_default=True, help="Tokens to generate.")
@click.option("--repeat", type=click.IntRange(min=1), default=3, show_default=True, help="Runs after one warm-up.")
@click.option("--slots", type=click.IntRange(min=1), default=1, show_default=True, help="Streams to decode together.")
@click.option(
    "--context", type=click.IntRange(min=1), help="Tokens of KV cache per stream.  [default: the bundle's context]"
)
@threads_option
@json_option
@json_file_option
def bench_command(
    bundle: str,
    prompt_tokens: int,
    output_tokens: int,
    repeat: int,
    slots: int,
    context: int | None,
    threads: int | None,
    as_json: bool,
    json_file: Path | None,
) -> None:
    """Measure prefill and decode speed on random tokens, without a stop token. Speeds are totals over all streams."""
    from megrez.runtime.bundle import open_bundle
    from megrez.runtime.engines import open_session
    from megrez.runtime.measure import measure, peak_rss_bytes
    from megrez.runtime.threads import default_threads

    opened = open_bundle(bundle)
    used = threads or default_threads()
    with contextlib.closing(open_session(opened, threads=used, slots=slots, capacity=context)) as session:
        runs = measure(session, prompt_tokens=prompt_tokens, output_tokens=output_tokens, repeat=repeat)
    figures = {
        "prefill_tokens_per_s": statistics.median(run.prefill_tokens_per_s for run in runs),
        "decode_tokens_per_s": statistics.median(run.decode_tokens_per_s for run in runs),
        "ttft_s": statistics.median(run.ttft_s for run in runs),
        "peak_rss_bytes": peak_rss_bytes(),
        "bundle_bytes": opened.size,
        "threads": used,
        "slots": slots,
    }
    show(_table(figures), json.dumps(figures, indent=2), as_json=as_json, json_file=json_file)


def _table(figures: dict[str, float]) -> str:
    rows = {
        "prefill": f"{figures['prefill_tokens_per_s']:10.1f} tokens/s",
        "decode": f"{figures['decode_tokens_per_s']:10.1f} tokens/s",
        "first token": f"{figures['ttft_s'] * 1e3:10.1f} ms",
        "peak memory": f"{figures['peak_rss_bytes'] / 2**20:10.1f} MiB",
        "bundle": f"{figures['bundle_bytes'] / 2**20:10.1f} MiB",
        "threads": f"{figures['threads']:10d}",
        "slots": f"{figures['slots']:10d}",
    }
    return "\n".join(f"{name:<12}{value}" for name, value in rows.items())
