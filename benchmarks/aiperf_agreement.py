"""aiperf, unchanged, and `megrez bench --url` in turns against one `megrez serve`: whether they measure the same.

python benchmarks/aiperf_agreement.py BUNDLE CHECKPOINT --aiperf PATH [--concurrency 1] [--requests 24] [--rounds 2]
    [--server-cpus 0 --client-cpus 1] [--as-it-comes] [--json-file FILE]

CHECKPOINT is a folder with the model's tokenizer, for aiperf's prompts. Prompts of 128 tokens, new ones in every turn;
64 tokens out, EOS ignored, greedy, without drafting. In every other round the order is the opposite. aiperf's own work
slows a server down that shares the machine, so that by default the work beside its requests is off: its scrapes of
/metrics and of GPUs; all but one worker and one record processor; its own tokenizing of answers (`megrez bench` counts
tokens by the server's usage too); and the loop that asks for a free place without a pause, which takes a processor of
its own where only --concurrency is given: --request-rate 200 makes it ask every 5 ms. --as-it-comes leaves all of that
at aiperf's defaults. The JSON file holds both tools' own results, turn by turn.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from report import command_line, cpu_name
from served import Served, served

PROMPT_TOKENS, OUTPUT_TOKENS = 128, 64
NAME = "model"
QUIET = (
    *("--workers-max", 1, "--record-processors", 1, "--use-server-token-count"),
    *("--no-server-metrics", "--no-gpu-telemetry"),
    *("--request-rate", 200, "--arrival-pattern", "constant"),
)
KEYS = "output_tokens_per_s", "ttft_p50_ms", "itl_p50_ms"
Figures = dict[str, float]
Turn = dict[str, Any]


def run(*command: object, folder: Path) -> float:
    """CPU seconds that the command and its children took; raises RuntimeError with its output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}\n{done.stdout[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def read(file: Path, folder: Path) -> Turn:
    """A tool's report, in which the folder of this run is left out of paths."""
    found: Turn = json.loads(file.read_text(encoding="utf-8").replace(f"{folder}/", ""))
    return found


def bench_turn(url: str, folder: Path, concurrency: int, requests: int, seed: int) -> Turn:
    megrez, file = Path(sys.executable).with_name("megrez"), folder / f"bench-{seed}.json"
    load = "--concurrency", concurrency, "--requests", requests, "--warmup", concurrency, "--repeat", 1, "--seed", seed
    tokens = "--prompt-tokens", PROMPT_TOKENS, "--output-tokens", OUTPUT_TOKENS
    seconds = run(megrez, "bench", "--url", url, *load, *tokens, "--json-file", file, folder=folder)
    result = read(file, folder)
    return {"client": "megrez bench", "cpu_s": seconds, "figures": bench_figures(result), "result": result}


def aiperf_turn(
    aiperf: Path, url: str, folder: Path, concurrency: int, requests: int, seed: int, options: tuple[object, ...]
) -> Turn:
    lengths = {"--synthetic-input-tokens": PROMPT_TOKENS, "--output-tokens": OUTPUT_TOKENS}
    fixed = [word for name, count in lengths.items() for word in (f"{name}-mean", count, f"{name}-stddev", 0)]
    target = "-m", NAME, "--url", url, "--endpoint-type", "completions", "--streaming", "--tokenizer", "tokenizer"
    load = "--concurrency", concurrency, "--request-count", requests, "--warmup-request-count", concurrency
    extra = "--extra-inputs", "ignore_eos:true", "--extra-inputs", "temperature:0"
    place = "--ui", "none", "--artifact-dir", f"aiperf-{seed}", "--random-seed", seed
    seconds = run(aiperf, "profile", *target, *load, *fixed, *extra, *place, *options, folder=folder)
    file = folder / f"aiperf-{seed}" / "profile_export_aiperf.json"
    result = read(file, folder)
    return {"client": "aiperf", "cpu_s": seconds, "figures": aiperf_figures(result), "result": result}


def bench_figures(result: Turn) -> Figures:
    """aiperf's inter-token latency is a mean over each request's tokens: our TPOT."""
    values = result["aggregate_output_tokens_per_s"], result["ttft_p50_s"] * 1e3, result["tpot_p50_s"] * 1e3
    return dict(zip(KEYS, values, strict=True))


def aiperf_figures(result: Turn) -> Figures:
    latencies = (result[name]["p50"] for name in ("time_to_first_token", "inter_token_latency"))
    return dict(zip(KEYS, (result["output_token_throughput"]["avg"], *latencies), strict=True))


def summarise(turns: list[Turn]) -> list[Turn]:
    """A row for each client: medians over its turns; and aiperf's over ours."""
    rows: list[Turn] = []
    for client in ("megrez bench", "aiperf"):
        found = [turn["figures"] for turn in turns if turn["client"] == client]
        rows.append({"name": client, **{key: statistics.median(one[key] for one in found) for key in KEYS}})
    ours, theirs = rows
    return [*rows, {"name": "aiperf over megrez bench", **{key: theirs[key] / ours[key] for key in KEYS}}]


def table(rows: list[Turn], concurrency: int) -> str:
    lines = ["| client | at once | output tok/s | TTFT P50, ms | ITL P50, ms |", "|---|---|---|---|---|"]
    for row in rows:
        digits = 3 if "over" in row["name"] else 1
        cells = " | ".join(f"{row[key]:.{digits}f}" for key in KEYS)
        lines.append(f"| {row['name']} | {concurrency} | {cells} |")
    return "\n".join(lines)


def cpus(text: str | None) -> set[int]:
    return os.sched_getaffinity(0) if text is None else {int(part) for part in text.split(",")}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--aiperf", type=click.Path(path_type=Path, exists=True), required=True, help="aiperf's command.")
@click.option("--concurrency", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--requests", type=click.IntRange(min=1), default=24, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--threads", default=1, show_default=True, help="Of the server.")
@click.option("--server-cpus", help="Such as 0.  [default: all]")
@click.option("--client-cpus", help="Such as 1.  [default: all]")
@click.option("--as-it-comes", is_flag=True, help="aiperf with all of its side tasks.")
@click.option("--json-file", type=click.Path(path_type=Path))
def main(
    bundle: Path,
    checkpoint: Path,
    aiperf: Path,
    concurrency: int,
    requests: int,
    rounds: int,
    threads: int,
    server_cpus: str | None,
    client_cpus: str | None,
    as_it_comes: bool,
    json_file: Path | None,
) -> None:
    """Measure and print a table."""
    server, client = cpus(server_cpus), cpus(client_cpus)
    options = () if as_it_comes else QUIET
    serve = "--name", NAME, "--slots", concurrency, "--context", 512, "--threads", threads, "--speculate", "off"
    turns: list[Turn] = []

    def turn_of(one: Served, folder: Path) -> list[Callable[[int], Turn]]:
        url = f"http://{one.address.host}:{one.address.port}"
        return [
            lambda seed: bench_turn(url, folder, concurrency, requests, seed),
            lambda seed: aiperf_turn(aiperf.absolute(), url, folder, concurrency, requests, seed, options),
        ]

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "tokenizer").symlink_to(checkpoint.absolute())
        os.sched_setaffinity(0, server)
        with served(bundle, folder / "server.log", *serve) as one:
            os.sched_setaffinity(0, client)
            order = turn_of(one, folder)
            for number in range(rounds):
                for kind, turn in enumerate(order):
                    turns.append(turn(2 * number + kind))
                    said = turns[-1]
                    click.echo(f"{said['client']}: {said['figures']}, {said['cpu_s']:.1f} CPU s", err=True)
                order.reverse()
    rows = summarise(turns)
    click.echo(table(rows, concurrency))
    if json_file is not None:
        settings = {"concurrency": concurrency, "requests": requests, "prompt_tokens": PROMPT_TOKENS}
        settings |= {"output_tokens": OUTPUT_TOKENS, "threads": threads, "as_it_comes": as_it_comes}
        machine = {"cpu": cpu_name(), "python": platform.python_version()}
        command = command_line("benchmarks/aiperf_agreement.py", sys.argv[1:])
        content = {"command": command, **machine, **settings, "results": rows, "turns": turns}
        json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
