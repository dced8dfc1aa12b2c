"""KV cache formats side by side: decode speed at several numbers of cached tokens, and memory.

python benchmarks/kv_cache.py [--install] [--python NAME=PATH ...] [--layers 8] [--lengths 4000,16000] [--rounds 8]
    [--wait FILE]

cpu-int4 at Megrez-3B's shape of a few layers, with random weights, compiled with --kv f32, f16 and int8, and
llama.cpp and ik_llama.cpp with a q8_0 cache and flash attention, in speed.py's environments. All stay open, each in its
own process, and alternate, every other round in the opposite order. Ratios are medians over rounds.
"""

import contextlib
import json
import statistics
import sys
import time
from pathlib import Path

import artefacts
import click
from peers.turns import Line, Runtime, opened_runtime
from random_checkpoint import SHAPE
from report import command_line
from rows import quantised_cache_rows
from speed import INSTALL, PYTHONS, prompt_ids, read_pythons

HERE = Path(__file__).parent
FORMATS = ("f32", "f16", "int8")
PROMPT = 500  # tokens, repeated


def commands(
    cache: Path, layers: int, threads: int, lengths: str, steps: int, *, compiled: bool
) -> dict[str, list[object]]:
    context = max(map(int, lengths.split(","))) + 2 * steps
    found: dict[str, list[object]] = {}
    for kv in FORMATS:
        options = "--kv", kv, "--context", context
        name = "-".join(["megrez-int4", str(layers), *map(str, options)])
        bundle = cache / name if compiled else artefacts.megrez_bundle(cache, layers, options)
        found[f"--kv {kv}"] = [sys.executable, HERE / "peers" / "kv_megrez.py", bundle, threads, lengths, steps]
    return found


def alternate(runtimes: dict[str, Runtime], count: int) -> list[dict[str, Line]]:
    order, rounds = list(runtimes), []
    for _ in range(count):
        figures = {name: runtimes[name].generate() for name in order}
        rounds.append(figures)
        click.echo(json.dumps({name: [round(v, 1) for v in figures[name].values()] for name in runtimes}), err=True)
        order.reverse()
    return rounds


def summarise(rounds: list[dict[str, Line]], about: dict[str, Line], lengths: list[str]) -> list[dict[str, object]]:
    """By cache, medians over rounds: tokens/s at each length, and ratios to float32 and of int8 to each."""
    results: list[dict[str, object]] = []
    for name, said in about.items():
        result: dict[str, object] = {"name": name, "cache_bytes": said["cache_bytes"]}
        for length in lengths:
            key = f"decode_{length}"
            result[key] = statistics.median(figures[name][key] for figures in rounds)
            result[f"over_f32_{length}"] = statistics.median(
                figures[name][key] / figures["--kv f32"][key] for figures in rounds
            )
            result[f"int8_over_it_{length}"] = statistics.median(
                figures["--kv int8"][key] / figures[name][key] for figures in rounds
            )
        results.append(result)
    return results


def table(results: list[dict[str, object]], lengths: list[str]) -> str:
    columns = [f"tok/s at {length} | over f32 | int8 over it |" for length in lengths]
    lines = [f"| cache | {' '.join(columns)} memory of the longest |", "|---" * (2 + 3 * len(lengths)) + "|"]
    for one in results:
        cells = [
            f"{one[f'decode_{length}']:.1f} | {one[f'over_f32_{length}']:.2f} | {one[f'int8_over_it_{length}']:.2f} |"
            for length in lengths
        ]
        lines.append(f"| {one['name']} | {' '.join(cells)} {float(str(one['cache_bytes'])) / 1e6:.0f} MB |")
    return "\n".join(lines)


@click.command()
@INSTALL
@PYTHONS
@click.option("--layers", default=8, show_default=True)
@click.option("--lengths", default="4000,16000", show_default=True, help="Numbers of cached tokens.")
@click.option("--steps", default=16, show_default=True, help="Tokens decoded at each length.")
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", "count", type=click.IntRange(min=2), default=8, show_default=True)
@click.option("--compiled", is_flag=True, help="Use the bundles of an earlier run.")
@click.option("--wait", type=click.Path(path_type=Path), help="Once all is open, wait until this file exists.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path(".cache/benchmarks"), show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(
    install: bool,
    pythons: tuple[str, ...],
    layers: int,
    lengths: str,
    steps: int,
    threads: int,
    count: int,
    compiled: bool,
    wait: Path | None,
    cache: Path,
    json_file: Path | None,
) -> None:
    """Measure and print a table."""
    found = commands(cache, layers, threads, lengths, steps, compiled=compiled)
    source, given = artefacts.megrez_shape(cache, layers), read_pythons(pythons)
    found |= quantised_cache_rows(cache, source, given, threads, lengths, steps, install=install)
    prompt = prompt_ids(SHAPE["vocab_size"], PROMPT)
    with contextlib.ExitStack() as stack:
        runtimes = {name: stack.enter_context(opened_runtime(command, prompt)) for name, command in found.items()}
        about = {name: runtime.about for name, runtime in runtimes.items()}
        while wait is not None and not wait.exists():
            time.sleep(0.2)
        rounds = alternate(runtimes, count)
    results = summarise(rounds, about, lengths.split(","))
    click.echo(table(results, lengths.split(",")))
    if json_file is not None:
        settings = {"threads": threads, "layers": layers, "steps": steps}
        report = {
            "command": command_line("benchmarks/kv_cache.py", sys.argv[1:]),
            "settings": settings,
            "about": about,
            "results": results,
            "rounds": rounds,
        }
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
