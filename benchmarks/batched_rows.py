"""Decode steps of several rows against the two walls that bound them, in one process.

python benchmarks/batched_rows.py BUNDLE [--tokens 128] [--rounds 20] [--threads 2] [--cpu-time] [--json FILE]

The bound of a step of N rows is the larger of a step of one row, which is one read of the weights, and N divided by the
prefill rate, which is the arithmetic of N tokens. Prefill computes the lm_head for the last position only, but a step
of N rows for all N: the second bound adds the lm_head's share of N rows' products at prefill's rate of products. All
kinds of step alternate, every other round in the opposite order; medians of the rounds after the first, and the lowest.
--cpu-time counts the process's CPU seconds with one thread, for a machine that others use.
"""

import contextlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from megrez.runtime.bundle import Bundle, open_bundle
from megrez.runtime.engines import open_session
from megrez.runtime.session import Session

ROWS = 1, 2, 4, 8, 16


def steps_of(session: Session, tokens: int) -> dict[int | str, Callable[[], object]]:
    """By number of rows, each with `tokens` cached tokens, and "prefill"."""
    prompt = np.random.default_rng(0).integers(session.vocab_size, size=tokens)

    def decode(rows: int) -> Callable[[], object]:
        every = np.arange(rows)
        return lambda: session.step(np.full(rows, 5), np.full(rows, tokens), every, slots=every)

    prefill = {"prefill": lambda: session.step(prompt, [0], [tokens - 1], slots=[0])}
    return {**{rows: decode(rows) for rows in ROWS}, **prefill}


def alternate(
    steps: dict[int | str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[int | str, list[float]]:
    """Seconds of each in every round but the first."""
    seconds: dict[int | str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name in list(steps)[:: -1 if turn % 2 else 1]:
            started = clock()
            steps[name]()
            seconds[name].append(clock() - started)
    return {name: found[1:] for name, found in seconds.items()}


def lm_head_share(bundle: Bundle) -> float:
    """The lm_head's products over those of all layers."""
    shape = bundle.manifest.architecture
    return shape.hidden_size * shape.vocab_size / (shape.num_hidden_layers * shape.layer_weights)


def table(seconds: dict[int | str, float], tokens: int, share: float) -> list[dict[str, float]]:
    """Milliseconds of a step of N rows and its ratios to both bounds."""
    per_token = seconds["prefill"] / (1 + share / tokens) / tokens
    lines = []
    for rows in ROWS:
        bound = max(seconds[1], rows * seconds["prefill"] / tokens)
        with_lm_head = max(seconds[1], rows * per_token * (1 + share))
        lines.append(
            {
                "rows": rows,
                "ms": seconds[rows] * 1e3,
                "over_bound": seconds[rows] / bound,
                "over_bound_with_lm_head": seconds[rows] / with_lm_head,
            }
        )
    return lines


@click.command()
@click.argument("path", metavar="BUNDLE", type=click.Path(exists=True, path_type=Path))
@click.option("--tokens", type=click.IntRange(min=2), default=128, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--cpu-time", is_flag=True, help="CPU seconds of one thread.")
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(path: Path, tokens: int, rounds: int, threads: int, cpu_time: bool, json_file: Path | None) -> None:
    """Print the prefill rate, each step and its ratio to the bounds."""
    bundle = open_bundle(path)
    session = open_session(bundle, threads=1 if cpu_time else threads, slots=max(ROWS), capacity=tokens + 1)
    with contextlib.closing(session):
        clock = time.process_time if cpu_time else time.perf_counter
        seconds = alternate(steps_of(session, tokens), rounds, clock)
    share = lm_head_share(bundle)
    found = {}
    for name, of in (("median", statistics.median), ("lowest", min)):
        summary = {step: of(times) for step, times in seconds.items()}
        found[name] = {"prefill_tokens_per_s": tokens / summary["prefill"], "steps": table(summary, tokens, share)}
        print(f"{name} of {rounds} rounds: prefill {tokens / summary['prefill']:.1f} tokens/s\n")
        print("| rows | ms | over the bound | over the bound with the lm_head |\n|---|---|---|---|")
        for line in found[name]["steps"]:
            ratios = f"{line['over_bound']:.2f} | {line['over_bound_with_lm_head']:.2f}"
            print(f"| {line['rows']} | {line['ms']:.1f} | {ratios} |")
        print()
    if json_file:
        json_file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
