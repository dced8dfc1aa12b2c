"""Speed on a CPU, side by side: megrez-compile, onnxruntime-genai and ik_llama.cpp, int4, in Megrez-3B's shape.

python benchmarks/speed.py --peers-python PATH [--layers 8] [--threads 2] [--rounds 40] [--streams 1]

The weights are random and the same for all, the model is cut to a few layers and keeps its whole lm_head. All runtimes
stay open, each in its own process, and alternate, every other round in the opposite order, so that changes of the
machine's speed affect all; memory bandwidth is measured between all turns. onnxruntime-genai has a second row with its
default number of threads, half of the processors, and ours one with ONNX Runtime's kernels or, where those are the
default (see custom_ops.py), rows with ours. A peer that is not installed for --peers-python is skipped and named.
Prefill is the prompt's tokens over the time to the first token, decode the other tokens over the remaining time. With
several streams, each with a prompt of its own, speeds are sums, and one stream of ours is a row too.
"""

import contextlib
import statistics
import subprocess
import sys
from pathlib import Path

import artefacts
import click
import numpy as np
from onnxruntime import SessionOptions
from random_checkpoint import SHAPE
from report import Figures, summarise, write
from turns import Runtime, opened_runtime

from megrez.engines.ort import custom_ops
from megrez.runtime.bench.bandwidth import Reader

HERE = Path(__file__).parent


def prompt_ids(vocab_size: int, count: int) -> list[int]:
    """The random ids of `megrez bench`."""
    return [int(token) for token in np.random.default_rng(0).integers(vocab_size, size=count)]


def missing(python: Path | None, module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    if python is not None and subprocess.run([str(python), "-c", code]).returncode == 0:
        return False
    click.echo(f"{module} is skipped: --peers-python names no Python that has it", err=True)
    return True


def runtimes_to_compare(
    cache: Path, layers: int, python: Path | None, output_tokens: int, threads: int, streams: int
) -> dict[str, tuple[list[object], int]]:
    """By name: the command that starts it, and the bytes of weights it reads per token, of all streams together."""
    found: dict[str, tuple[list[object], int]] = {}
    options: tuple[object, ...]
    lengths = artefacts.CONTEXT, output_tokens, streams
    for options in ((), ("--block-size", 128)):
        bundle = artefacts.megrez_bundle(cache, layers, options)
        found[" ".join(["megrez-compile cpu-int4", *map(str, options)])] = (
            [sys.executable, HERE / "speed_megrez.py", bundle, threads, output_tokens, streams],
            artefacts.onnx_bytes_per_token(bundle) // streams,
        )
    ours, read = found["megrez-compile cpu-int4"]
    if streams > 1:
        found["megrez-compile cpu-int4, one stream"] = [*ours[:-1], 1], read * streams
    for name, setting in other_kernels().items():
        found[f"megrez-compile cpu-int4, {name}"] = ["env", f"{custom_ops.SETTING}={setting}", *ours], read
    if python and not missing(python, "onnxruntime_genai"):
        folder = artefacts.genai_folder(cache, layers, python)
        read = artefacts.onnx_bytes_per_token(folder) // streams
        for name, used in (("onnxruntime-genai int4", threads), ("onnxruntime-genai int4, its default threads", 0)):
            found[name] = [python, HERE / "peer_genai.py", folder, used, *lengths], read
    if python and not missing(python, "ik_llama_cpp"):
        file = artefacts.ik_llama_file(cache, layers, python)
        found[f"ik_llama.cpp Q4_0, lm_head {artefacts.gguf_head_type(file)}"] = (
            [python, HERE / "peer_ik_llama.py", file, threads, *lengths],
            artefacts.gguf_bytes_per_token(file) // streams,
        )
    return found


def other_kernels() -> dict[str, str]:
    """Values of MEGREZ_KERNELS for kernels other than this processor's default."""
    if custom_ops.register(SessionOptions()):
        return {"ONNX Runtime's kernels": "0"}
    library = custom_ops.find_library()
    if library is None or not custom_ops.judge(library):
        return {}
    return {"our kernels": "1", "our kernels but MatMulNBits": "attention"}


def alternate(
    runtimes: dict[str, Runtime], reader: Reader, count: int
) -> tuple[list[dict[str, Figures]], list[list[float]]]:
    """By round: every runtime's figures, and the bandwidths read before, between and after their turns."""
    rounds, bandwidths = [], []
    order = list(runtimes)
    for number in range(count):
        figures, read = {}, [reader.bandwidth_now()]
        for name in order:
            figures[name] = runtimes[name].generate()
            read.append(reader.bandwidth_now())
        rounds.append(figures)
        bandwidths.append(read)
        speeds = ", ".join(f"{figures[name]['decode_tokens_per_s']:.1f}" for name in runtimes)
        click.echo(f"round {number + 1}: decode {speeds} tokens/s, memory {min(read) / 1e9:.1f} GB/s", err=True)
        order.reverse()
    return rounds, bandwidths


@click.command()
@click.option("--peers-python", type=click.Path(path_type=Path, exists=True), help="A Python that has the peers.")
@click.option("--layers", default=8, show_default=True)
@click.option("--prompt-tokens", default=128, show_default=True)
@click.option("--output-tokens", default=64, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--streams", type=click.IntRange(min=1), default=1, show_default=True, help="Sequences at once.")
@click.option("--rounds", "count", type=click.IntRange(min=2), default=40, show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path(".cache/benchmarks"), show_default=True)
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path(".cache/benchmarks/speed"), help="Without .md and .json."
)
def main(
    peers_python: Path | None,
    layers: int,
    prompt_tokens: int,
    output_tokens: int,
    threads: int,
    streams: int,
    count: int,
    cache: Path,
    output: Path,
) -> None:
    """Measure, print a table and write it, with details in a JSON file."""
    found = runtimes_to_compare(cache, layers, peers_python, output_tokens, threads, streams)
    prompt = prompt_ids(SHAPE["vocab_size"], prompt_tokens)
    with contextlib.ExitStack() as stack:
        runtimes = {name: stack.enter_context(opened_runtime(command, prompt)) for name, (command, _) in found.items()}
        about = {name: runtime.about for name, runtime in runtimes.items()}
        rounds, bandwidths = alternate(runtimes, Reader(threads), count)
    rows = summarise(rounds)
    bandwidth = statistics.median(value for read in bandwidths for value in read)
    for name, (_, read) in found.items():
        share = read * rows[name]["decode"] / bandwidth
        rows[name] |= {**about[name], "bytes_per_token": read, "bandwidth_share": share}
    settings = {"threads": threads, "layers": layers, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
    settings |= {"streams": streams, "rounds": count}
    click.echo(write(output, "benchmarks/speed.py", settings, list(rows.values()), bandwidths))


if __name__ == "__main__":
    main()
