"""The cost of slots: steps of a session of several slots relative to those of one slot, in one process.

python benchmarks/session_slots.py [--layers 8] [--slots 8] [--tokens 128] [--rounds 20] [--threads 2] [--cache FOLDER]

cpu-int4 in Megrez-3B's shape, cut to a few layers, with random weights. All kinds of step alternate, every other round
in the opposite order; medians of the rounds after the first. "padded" gives every slot as many tokens as the longest
sequence of the mixed step: the cost of that step if it were padded and not split.
"""

import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import artefacts
import click
import numpy as np

from megrez.runtime.bundle import open_bundle
from megrez.runtime.engines import open_session
from megrez.runtime.session import Session

Steps = dict[str, tuple[Callable[[], object], str | None]]


def kinds(one: Session, many: Session, tokens: int) -> Steps:
    """By name: a step, and the name of the one it is compared with. Every slot has `tokens` cached tokens."""
    prompt = np.random.default_rng(0).integers(one.vocab_size, size=tokens)
    slots, last = many.slots, tokens - 1
    all_sequences, busy = np.arange(slots), [slots // 2]
    starts = np.full(slots, tokens)
    mixed = np.concatenate([prompt, np.full(slots - 1, 5)])
    mixed_starts = np.concatenate([[0], starts[1:]])
    mixed_counts = np.concatenate([[tokens], np.ones(slots - 1, np.int64)])
    padded = np.tile(prompt, slots)
    decode, prefill = "decode, 1 slot", f"prefill of {tokens}, 1 slot"
    return {
        decode: (lambda: one.step([5], [tokens], [0]), None),
        f"decode, 1 busy of {slots}": (lambda: many.step([5], [tokens], [0], slots=busy), decode),
        f"decode, {slots} busy": (lambda: many.step(np.full(slots, 5), starts, all_sequences), decode),
        prefill: (lambda: one.step(prompt, [0], [last]), None),
        f"prefill of {tokens}, 1 busy of {slots}": (lambda: many.step(prompt, [0], [last], slots=busy), prefill),
        f"prefill of {tokens} and {slots - 1} decode, split": (
            lambda: many.step(mixed, mixed_starts, last + all_sequences, counts=mixed_counts),
            prefill,
        ),
        f"prefill of {tokens} and {slots - 1} decode, padded": (
            lambda: many.step(padded, np.zeros(slots), all_sequences * tokens + last),
            prefill,
        ),
        f"copy of {tokens} tokens": (lambda: many.copy(0, slots - 1, tokens), decode),
    }


def alternate(steps: Steps, rounds: int) -> dict[str, float]:
    """Median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name in list(steps)[:: -1 if turn % 2 else 1]:
            started = time.perf_counter()
            steps[name][0]()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(found[1:]) for name, found in seconds.items()}


@click.command()
@click.option("--layers", default=8, show_default=True)
@click.option("--slots", type=click.IntRange(min=2), default=8, show_default=True)
@click.option("--tokens", type=click.IntRange(min=2, max=artefacts.CONTEXT - 1), default=128, show_default=True)
@click.option("--rounds", default=20, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path(".cache/benchmarks"), show_default=True)
def main(layers: int, slots: int, tokens: int, rounds: int, threads: int, cache: Path) -> None:
    """Print medians, and each kind of step over the one of a single slot."""
    bundle = open_bundle(artefacts.megrez_bundle(cache, layers, ()))
    with (
        contextlib.closing(open_session(bundle, threads=threads)) as one,
        contextlib.closing(open_session(bundle, threads=threads, slots=slots)) as many,
    ):
        steps = kinds(one, many, tokens)
        medians = alternate(steps, rounds)
    print("| step | median | over 1 slot's |\n|---|---|---|")
    for name, (_, base) in steps.items():
        ratio = f"{medians[name] / medians[base]:.2f}" if base else ""
        print(f"| {name} | {medians[name] * 1e3:.1f} ms | {ratio} |")


if __name__ == "__main__":
    main()
