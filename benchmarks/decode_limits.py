"""What a decode step's time goes into: reading weights from memory, or all else.

python benchmarks/decode_limits.py BUNDLE [--tokens 128] [--steps 60] [--rounds 10] [--json FILE]

Beside the bundle runs a copy whose layers all read the first layer's weights, which then stay in a cache if they fit
one: what it takes less is the time of reading the others from memory. Both run with one thread and with two. "run" is
the time within ONNX Runtime; the rest of a step is bookkeeping in Python. All alternate; medians over all steps.
"""

import contextlib
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime
from report import command_line

from megrez.engines.onnx_files import DATA_FILE
from megrez.engines.ort import MODEL_FILE
from megrez.runtime.bundle import Bundle, open_bundle
from megrez.runtime.engines import open_session
from megrez.runtime.session import Session


@contextlib.contextmanager
def with_shared_layers(bundle: Bundle) -> Iterator[Bundle]:
    """The bundle with every layer's weights replaced by the first layer's, in a temporary folder beside it."""
    model = onnx.load(bundle.path / MODEL_FILE, load_external_data=False)
    found = {one.name: one for one in model.graph.initializer}
    for name, one in found.items():
        first = found.get(re.sub(r"layers\.\d+\.", "layers.0.", name))
        if first is not None and first.external_data and list(first.dims) == list(one.dims):
            one.CopyFrom(first)
            one.name = name
    with tempfile.TemporaryDirectory(dir=bundle.path.parent, prefix=".shared-layers-") as folder:
        weights = DATA_FILE.format(MODEL_FILE)
        os.link(bundle.path / weights, Path(folder) / weights)
        onnx.save(model, Path(folder) / MODEL_FILE)
        yield Bundle(path=Path(folder), manifest=bundle.manifest)


class Decoding:
    """Times steps of one token after `tokens` cached ones, and the part of each within ONNX Runtime."""

    def __init__(self, session: Session, tokens: int) -> None:
        self._session, self._tokens = session, tokens
        self.step: list[float] = []
        self.run: list[float] = []
        session.step(np.arange(tokens) + 5, [0], [tokens - 1])

    def __call__(self, steps: int) -> None:
        original = onnxruntime.InferenceSession.run_with_iobinding

        def timed(*arguments: object) -> None:
            started = time.perf_counter()
            original(*arguments)
            self.run.append(time.perf_counter() - started)

        onnxruntime.InferenceSession.run_with_iobinding = timed
        for _ in range(steps):
            started = time.perf_counter()
            self._session.step([5], [self._tokens], [0])
            self.step.append(time.perf_counter() - started)
        onnxruntime.InferenceSession.run_with_iobinding = original


def measure(bundle: Bundle, tokens: int, steps: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a step and of the part within ONNX Runtime, by weights and threads."""
    with contextlib.ExitStack() as stack:
        shared = stack.enter_context(with_shared_layers(bundle))
        kinds: dict[str, Decoding] = {}
        for name, one in (("every layer's weights", bundle), ("the first layer's", shared)):
            for threads in (1, 2):
                session = stack.enter_context(contextlib.closing(open_session(one, threads=threads)))
                kinds[f"{name}, {threads} threads"] = Decoding(session, tokens)
        for turn in range(rounds):
            for name in list(kinds)[:: -1 if turn % 2 else 1]:
                kinds[name](steps)
    return {
        name: {
            "step_ms": statistics.median(one.step) * 1e3,
            "run_ms": statistics.median(one.run) * 1e3,
            "lowest_step_ms": min(one.step) * 1e3,
        }
        for name, one in kinds.items()
    }


@click.command()
@click.argument("path", metavar="BUNDLE", type=click.Path(exists=True, path_type=Path))
@click.option("--tokens", type=click.IntRange(min=2), default=128, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=60, show_default=True, help="Steps of a turn.")
@click.option("--rounds", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(path: Path, tokens: int, steps: int, rounds: int, json_file: Path | None) -> None:
    """Print a table."""
    found = measure(open_bundle(path), tokens, steps, rounds)
    print("| weights read, threads | step ms | of these within ONNX Runtime | lowest step ms |\n|---|---|---|---|")
    for name, ms in found.items():
        print(f"| {name} | {ms['step_ms']:.2f} | {ms['run_ms']:.2f} | {ms['lowest_step_ms']:.2f} |")
    if json_file:
        report = {"command": command_line("benchmarks/decode_limits.py", sys.argv[1:]), "milliseconds": found}
        json_file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
