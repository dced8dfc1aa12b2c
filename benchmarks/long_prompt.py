"""One long prompt: prefill, decode after it, and resident memory against the stated budget; peers beside it.

python benchmarks/long_prompt.py [--install] [--python NAME=PATH ...] [--layers 2] [--tokens 30000] [--chunk 512]
    [--rounds 2]

cpu-int4 at Megrez-3B's shape of a few layers, with random weights and an int8 KV cache; llama.cpp and ik_llama.cpp with
a q8_0 cache and flash attention, in speed.py's environments. They take turns, each in a process of its own that ends
with its turn.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import artefacts
import click
from peers.turns import Line, opened_runtime
from random_checkpoint import SHAPE
from report import command_line
from rows import quantised_cache_rows
from speed import INSTALL, PYTHONS, prompt_ids, read_pythons

PEERS = Path(__file__).parent / "peers"
OUTPUT = 16
SPEEDS = {"prefill_tokens_per_s": "prefill tok/s", "decode_tokens_per_s": "decode tok/s after it"}
SIZES = {
    "cache_bytes": "cache, MB",
    "stated_cache_bytes": "as stated",
    "resident_bytes": "resident in all, MB",
    "stated_bytes": "as stated",
}


def our_turn(bundle: Path, tokens: int, chunk: int, threads: int) -> Line:
    words = [sys.executable, PEERS / "long_megrez.py", bundle, tokens, chunk, threads, OUTPUT]
    done = subprocess.run([str(word) for word in words], check=True, stdout=subprocess.PIPE, text=True)
    found: Line = json.loads(done.stdout)
    return found


def peer_turn(command: list[object], tokens: int) -> Line:
    with opened_runtime(command, prompt_ids(SHAPE["vocab_size"], 500)) as runtime:
        decode = runtime.generate()[f"decode_{tokens}"]
    about = runtime.about
    found = {"prefill_tokens_per_s": about[f"prefill_{tokens}"], "decode_tokens_per_s": decode}
    return found | {"cache_bytes": about["cache_bytes"]}


def row(name: str, figures: list[Line]) -> Line:
    """Medians over rounds."""
    medians = {key: statistics.median(one[key] for one in figures) for key in figures[0]}
    return {"name": name, **medians, "rounds": figures}


def table(rows: list[Line]) -> str:
    columns = ["runtime", *SPEEDS.values(), *SIZES.values()]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for one in rows:
        speeds = [f"{one[key]:.1f}" for key in SPEEDS]
        sizes = [f"{one[key] / 1e6:.1f}" if key in one else "" for key in SIZES]
        lines.append(f"| {' | '.join([one['name'], *speeds, *sizes])} |")
    return "\n".join(lines)


@click.command()
@INSTALL
@PYTHONS
@click.option("--layers", default=2, show_default=True)
@click.option("--tokens", default=30000, show_default=True)
@click.option("--chunk", default=512, show_default=True, help="Tokens of a step of ours.")
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--reuse", is_flag=True, help="Use the bundle of an earlier run.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path(".cache/benchmarks"), show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(
    install: bool,
    pythons: tuple[str, ...],
    layers: int,
    tokens: int,
    chunk: int,
    threads: int,
    rounds: int,
    reuse: bool,
    cache: Path,
    json_file: Path | None,
) -> None:
    """Measure and print a table."""
    source = artefacts.megrez_shape(cache, layers)
    bundle = artefacts.bundle(cache, source, "cpu-int4", ("--kv", "int8", "--context", tokens + OUTPUT), reuse=reuse)
    turns: dict[str, Callable[[], Line]] = {"megrez-compile": lambda: our_turn(bundle, tokens, chunk, threads)}
    peers = quantised_cache_rows(cache, source, read_pythons(pythons), threads, str(tokens), OUTPUT, install=install)
    turns |= {name: partial(peer_turn, command, tokens) for name, command in peers.items()}
    figures: dict[str, list[Line]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            figures[name].append(turn())
            click.echo(json.dumps({name: figures[name][-1]}), err=True)
    rows = [row(name, found) for name, found in figures.items()]
    click.echo(table(rows))
    if json_file is not None:
        settings = {"layers": layers, "tokens": tokens, "chunk": chunk, "threads": threads}
        report = {
            "command": command_line("benchmarks/long_prompt.py", sys.argv[1:]),
            "settings": settings,
            "results": rows,
        }
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
