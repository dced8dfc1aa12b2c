"""Speed on a CPU, side by side: megrez-compile, onnxruntime-genai and ik_llama.cpp, int4, in Megrez-3B's shape.

python benchmarks/speed.py --peers-python PATH [--layers 8] [--threads 2] [--rounds 3] [--cache FOLDER]

The weights are random and the same for all, the model is cut to a few layers and keeps its whole lm_head. Rounds
alternate between the runtimes, each in a process of its own, so that a machine that changes its speed changes it
for all; where others use it too, the best of many rounds is nearest to a quiet machine's (see report.summarise). A
peer that is not installed for --peers-python is skipped and named. Prefill is the prompt over the time to the first
token, decode the rest over the time of the rest.
"""

import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import artefacts
import click
import numpy as np
from bandwidth import read_bandwidth
from random_checkpoint import SHAPE
from report import Figures, summarise, write

HERE = Path(__file__).parent
REPEAT = 3
Measure = Callable[[], Figures]


def prompt_ids(vocab_size: int, count: int) -> list[int]:
    """The ids that `megrez bench` draws."""
    return [int(token) for token in np.random.default_rng(0).integers(vocab_size, size=count)]


def measure_megrez(bundle: Path, prompt_tokens: int, output_tokens: int, threads: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [Path(sys.executable).with_name("megrez"), "bench", bundle, "--json", file, "--repeat", REPEAT]
        command += ["--prompt-tokens", prompt_tokens, "--output-tokens", output_tokens, "--threads", threads]
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
        figures = json.loads(file.read_text(encoding="utf-8"))
    return {**figures, "version": version("megrez-compile"), "bytes": figures["bundle_bytes"]}


def measure_peer(
    python: Path, script: str, model: Path, prompt: list[int], output_tokens: int, threads: int
) -> Figures:
    command = [python, HERE / script, model, threads, artefacts.CONTEXT, output_tokens, REPEAT]
    done = subprocess.run([str(word) for word in command], input=json.dumps(prompt), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{script} failed: {done.stderr[-2000:]}")
    figures: Figures = json.loads(done.stdout)
    return figures


def missing(python: Path | None, module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    if python is not None and subprocess.run([str(python), "-c", code]).returncode == 0:
        return False
    click.echo(f"{module} is skipped: --peers-python names no Python that has it", err=True)
    return True


def contestants(
    cache: Path, layers: int, python: Path | None, prompt_tokens: int, output_tokens: int, threads: int
) -> dict[str, tuple[Measure, int]]:
    """By name: how to measure it once, and the bytes of weights it reads per token."""
    prompt = prompt_ids(SHAPE["vocab_size"], prompt_tokens)
    found: dict[str, tuple[Measure, int]] = {}
    options: tuple[object, ...]
    for options in ((), ("--block-size", 128)):
        bundle = artefacts.megrez_bundle(cache, layers, options)
        found[" ".join(["megrez-compile cpu-int4", *map(str, options)])] = (
            functools.partial(measure_megrez, bundle, prompt_tokens, output_tokens, threads),
            artefacts.onnx_bytes_per_token(bundle),
        )
    if python and not missing(python, "onnxruntime_genai"):
        folder = artefacts.genai_folder(cache, layers, python)
        found["onnxruntime-genai int4"] = (
            lambda: measure_peer(python, "peer_genai.py", folder, prompt, output_tokens, threads),
            artefacts.onnx_bytes_per_token(folder),
        )
    if python and not missing(python, "ik_llama_cpp"):
        file = artefacts.ik_llama_file(cache, layers, python)
        found[f"ik_llama.cpp Q4_0, lm_head {artefacts.gguf_head_type(file)}"] = (
            lambda: measure_peer(python, "peer_ik_llama.py", file, prompt, output_tokens, threads),
            artefacts.gguf_bytes_per_token(file),
        )
    return found


@click.command()
@click.option("--peers-python", type=click.Path(path_type=Path, exists=True), help="A Python that has the peers.")
@click.option("--layers", default=8, show_default=True)
@click.option("--prompt-tokens", default=128, show_default=True)
@click.option("--output-tokens", default=64, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", "count", default=3, show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path(".cache/benchmarks"), show_default=True)
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path(".cache/benchmarks/speed"), help="Less .md, .json."
)
def main(
    peers_python: Path | None,
    layers: int,
    prompt_tokens: int,
    output_tokens: int,
    threads: int,
    count: int,
    cache: Path,
    output: Path,
) -> None:
    """Measure, print a table and write it with the details beside it."""
    runtimes = contestants(cache, layers, peers_python, prompt_tokens, output_tokens, threads)
    bandwidth = max(read_bandwidth(threads) for _ in range(2))
    rounds = []
    for number in range(count):
        rounds.append({name: measure() for name, (measure, _) in runtimes.items()})
        for name, figures in rounds[-1].items():
            speeds = f"{figures['prefill_tokens_per_s']:.1f} {figures['decode_tokens_per_s']:.2f}"
            click.echo(f"round {number + 1}: {name}: {speeds}", err=True)
    rows = summarise(rounds, {name: read for name, (_, read) in runtimes.items()}, bandwidth)
    settings = {"threads": threads, "layers": layers, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
    click.echo(write(output, "benchmarks/speed.py", {**settings, "rounds": count}, rows, bandwidth))


if __name__ == "__main__":
    main()
