"""Speed side by side: megrez-compile and other runtimes (peers/runtimes.py), one workload, interleaved in one run.

python benchmarks/speed.py [--peer NAME ...] [--install] [--python NAME=PATH ...]
    [--model FOLDER-OR-GGUF | --config FILE | --layers 8] [--bits 4] [--device cpu] [--threads 2] [--rounds 40]
    [--streams 1] [--prompt-tokens 128] [--few] [--wait FILE]

The model is a checkpoint, a GGUF file, or random weights: of a config.json (shapes/), or in Megrez-3B's shape, cut to a
few layers with its whole lm_head. Each peer runs in an environment of its own, which --install makes in the cache; one
that cannot run here is skipped and named. All runtimes stay open and alternate, every other round in the opposite
order, so that changes of the machine's speed affect all; on CPUs memory bandwidth is measured between all turns.
onnxruntime-genai has a second row with its default number of threads, half of the processors, and ours one with ONNX
Runtime's kernels or, where those are the default (see custom_ops.py), rows with ours; --few leaves these out. Prefill
is the prompt's tokens over the time to the first token, decode the other tokens over the remaining time. With several
streams, each with a prompt of its own, speeds are sums, and one stream of ours is a row too.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import artefacts
import click
import numpy as np
from artefacts import Source
from peers.runtimes import Peer, UnavailableError, environment_of, find_peers
from peers.turns import Runtime, opened_runtime
from report import Figures, summarise, write
from rows import TARGETS, Row, Workload, our_rows, peer_rows

from megrez.engines.cuda_runtime import Cuda
from megrez.runtime.bench.bandwidth import Reader
from megrez.runtime.errors import MegrezError

INSTALL = click.option("--install", is_flag=True, help="Make the environments that are missing.")
PYTHONS = click.option("--python", "pythons", multiple=True, metavar="NAME=PATH", help="A Python that has this peer.")


def prompt_ids(vocab_size: int, count: int) -> list[int]:
    """The random ids of `megrez bench`."""
    return [int(token) for token in np.random.default_rng(0).integers(vocab_size, size=count)]


def all_rows(
    rows: dict[str, Row],
    peers: list[Peer],
    given: Mapping[str, Path],
    cache: Path,
    source: Source,
    work: Workload,
    *,
    install: bool,
) -> dict[str, Row]:
    """Ours, `rows`, and those of the peers that can run here; the others are named with the reason."""
    rows = dict(rows)
    for peer in peers:
        try:
            python = environment_of(peer, cache, given, install=install)
            rows |= peer_rows(peer, python, cache, source, work)
        except (UnavailableError, RuntimeError) as error:
            click.echo(f"{peer.name} is skipped: {' '.join(str(error).split())}", err=True)
    return rows


def opened_rows(rows: dict[str, Row], prompt: list[int], stack: contextlib.ExitStack) -> dict[str, Runtime]:
    """Ours must open; a peer that does not is named with its error and left out."""
    runtimes: dict[str, Runtime] = {}
    for name, row in rows.items():
        try:
            runtimes[name] = stack.enter_context(opened_runtime(row.command, prompt))
        except RuntimeError as error:
            if not runtimes:
                raise
            click.echo(f"{name} is skipped: {' '.join(str(error).split())[-300:]}", err=True)
    return runtimes


def alternate(
    runtimes: dict[str, Runtime], reader: Reader, count: int
) -> Iterator[tuple[dict[str, Figures], list[float]]]:
    """Of each round: every runtime's figures, and the bandwidths read before, between and after their turns."""
    order = list(runtimes)
    for number in range(count):
        figures, read = {}, [reader.bandwidth_now()]
        for name in order:
            figures[name] = runtimes[name].generate()
            read.append(reader.bandwidth_now())
        speeds = ", ".join(f"{figures[name]['decode_tokens_per_s']:.1f}" for name in runtimes)
        click.echo(f"round {number + 1}: decode {speeds} tokens/s, memory {min(read) / 1e9:.1f} GB/s", err=True)
        yield figures, read
        order.reverse()


def summary(
    rounds: list[dict[str, Figures]], bandwidths: list[list[float]], found: dict[str, Row], about: dict[str, Figures]
) -> list[Figures]:
    """A row per runtime; on GPUs its share of the CPU's memory bandwidth means nothing and is left out."""
    rows = summarise(rounds)
    bandwidth = statistics.median(value for read in bandwidths for value in read)
    for name, row in rows.items():
        read = found[name].bytes_per_token
        share = read * row["decode"] / bandwidth if found[name].on_cpu else None
        row |= {**about[name], "bytes_per_token": read, "bandwidth_share": share}
    return list(rows.values())


def measure(runtimes: dict[str, Runtime], found: dict[str, Row], count: int, settings: Figures, output: Path) -> str:
    """The report, written anew after every round but the first: an interrupted run keeps its rounds."""
    about = {name: runtime.about for name, runtime in runtimes.items()}
    rounds, bandwidths, text = list[dict[str, Figures]](), list[list[float]](), ""
    for figures, read in alternate(runtimes, Reader(settings["threads"]), count):
        rounds.append(figures)
        bandwidths.append(read)
        if len(rounds) > 1:
            rows = summary(rounds, bandwidths, found, about)
            text = write(output, "benchmarks/speed.py", settings | {"rounds": len(rounds)}, rows, bandwidths)
    return text


def read_pythons(given: tuple[str, ...]) -> dict[str, Path]:
    """Of NAME=PATH."""
    found = {name: Path(path) for name, _, path in (one.partition("=") for one in given)}
    for name, path in found.items():
        if not path.is_file():
            raise click.UsageError(f"--python {name}={path} is no file: give NAME=PATH of a Python")
    return found


def find_source(cache: Path, model: Path | None, config: Path | None, layers: int) -> tuple[Source, str]:
    """What is measured, and its name in the report."""
    if model is not None:
        return Source(model.absolute().name.removesuffix(".gguf"), model), model.absolute().name
    if config is not None:
        return artefacts.random_weights(cache, config), f"{config.stem}'s shape"
    return artefacts.megrez_shape(cache, layers), f"Megrez-3B's shape, {layers} layers"


def wait_for(file: Path | None) -> None:
    """Where opening disturbs others: whoever makes the machine quiet then makes the file."""
    if file is not None:
        click.echo(f"all are open, waiting for {file}", err=True)
    while file is not None and not file.exists():
        time.sleep(0.2)


def check_device(device: str, bits: int) -> None:
    """Raise UsageError where there is no such device, or nothing of ours with these weights on it."""
    if (device, bits) not in TARGETS:
        raise click.UsageError(f"--device {device} has no weights of {bits} bits here: leave --bits out")
    try:
        if device == "cuda":
            Cuda("cuda")
    except MegrezError as error:
        raise click.UsageError(f"--device cuda: {error}") from error


@click.command()
@click.option("--peer", "names", multiple=True, help="Compare with this one only; may be given several times.")
@INSTALL
@PYTHONS
@click.option("--reuse", is_flag=True, help="Take our bundles from the cache where they are there.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--bits", type=click.Choice([4, 8]), default=4, show_default=True, help="Of the weights.")
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="A Hugging Face folder or a GGUF file.")
@click.option("--config", type=click.Path(path_type=Path, exists=True), help="Random weights of this config.json.")
@click.option("--layers", default=8, show_default=True, help="Of Megrez-3B's shape, without --model.")
@click.option("--prompt-tokens", default=128, show_default=True)
@click.option("--output-tokens", default=64, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--streams", type=click.IntRange(min=1), default=1, show_default=True, help="Sequences at once.")
@click.option("--few", is_flag=True, help="One row for each runtime: no other kernels, blocks and threads.")
@click.option("--wait", type=click.Path(path_type=Path), help="Once all is open, wait until this file exists.")
@click.option("--rounds", "count", type=click.IntRange(min=2), default=40, show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path(".cache/benchmarks"), show_default=True)
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path(".cache/benchmarks/speed"), help="Without .md and .json."
)
def main(
    names: tuple[str, ...],
    install: bool,
    pythons: tuple[str, ...],
    reuse: bool,
    device: str,
    bits: int,
    model: Path | None,
    config: Path | None,
    layers: int,
    prompt_tokens: int,
    output_tokens: int,
    threads: int,
    streams: int,
    few: bool,
    wait: Path | None,
    count: int,
    cache: Path,
    output: Path,
) -> None:
    """Measure, print a table of ratios and write it, with details in a JSON file."""
    try:
        peers = find_peers(names, device)
    except UnavailableError as error:
        raise click.UsageError(str(error)) from error
    if prompt_tokens + output_tokens > artefacts.CONTEXT:
        raise click.UsageError(f"prompt and output are at most {artefacts.CONTEXT} tokens together")
    check_device(device, bits)
    cache.mkdir(parents=True, exist_ok=True)
    source, named = find_source(cache, model, config, layers)
    work = Workload(
        device=device,
        bits=bits,
        threads=threads,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        streams=streams,
        variants=not few,
    )
    ours = our_rows(cache, source, work, reuse=reuse)
    found = all_rows(ours, peers, read_pythons(pythons), cache, source, work, install=install)
    prompt = prompt_ids(artefacts.vocab_size(source), prompt_tokens)
    with contextlib.ExitStack() as stack:
        runtimes = opened_rows(found, prompt, stack)
        wait_for(wait)
        click.echo(measure(runtimes, found, count, {"model": named, **work.settings}, output))


if __name__ == "__main__":
    main()
