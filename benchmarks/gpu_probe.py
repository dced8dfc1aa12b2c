"""What one bundle computes and how fast, as JSON; a process of its own, so that a crash ends nothing else.

python benchmarks/gpu_probe.py BUNDLE FOLDER [--batch 1 --batch 8] [--prompt-tokens 128] [--output-tokens 64]

Writes FOLDER/logits.npy, of every token of a fixed random prompt, and FOLDER/probe.json: greedy ids after that prompt,
tokens a second with so many sequences at once, and the share of measured memory bandwidth that decoding one of them
takes.
"""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from bandwidth import read_bandwidth

from megrez.runtime.bundle import Bundle, open_bundle
from megrez.runtime.engines import open_session
from megrez.runtime.generate import generate
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.session import Session

# Short enough for every bundle that is checked; long enough for several pieces of a prompt.
CHECKED, GENERATED = 96, 32
COPIED = 1 << 30
WEIGHTS = (".plan", ".data")


def checked_ids(vocab_size: int) -> list[int]:
    found: list[int] = np.random.default_rng(1).integers(vocab_size, size=CHECKED).tolist()
    return found


def compute(bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Logits of a prompt read at once, to a file; and what is generated after it."""
    with contextlib.closing(open_session(bundle, threads=None)) as session:
        ids = checked_ids(session.vocab_size)
        rows = np.arange(CHECKED)
        np.save(folder / "logits.npy", session.step(np.array([ids]), np.zeros(1, np.int32), rows))
        steps = generate(session, ids, SamplingParams(temperature=0.0), stop_ids=(), max_tokens=GENERATED)
        return {"ids": [step.token for step in steps]}


def speed(bundle: Bundle, batch: int, prompt_tokens: int, output_tokens: int) -> dict[str, float]:
    """Tokens a second of `batch` sequences in step; the first time through is a warm-up."""
    with contextlib.closing(open_session(bundle, threads=None, slots=batch)) as session:
        timed = [_run(session, prompt_tokens, output_tokens) for _ in range(3)][1:]
    prefill, decode = (min(run[part] for run in timed) for part in range(2))
    return {"prefill": batch * prompt_tokens / prefill, "decode": batch * output_tokens / decode}


def _run(session: Session, prompt_tokens: int, output_tokens: int) -> tuple[float, float]:
    """Seconds of reading a prompt in every slot, and of so many steps after it."""
    slots = session.slots
    random = np.random.default_rng(0)
    prompt = random.integers(session.vocab_size, size=(slots, prompt_tokens))
    started = time.perf_counter()
    last = np.arange(slots) * prompt_tokens + prompt_tokens - 1
    logits = session.step(prompt, np.zeros(slots, np.int32), last)
    read = time.perf_counter()
    for step in range(output_tokens):
        tokens = logits.argmax(axis=1).reshape(slots, 1)
        logits = session.step(tokens, np.full(slots, prompt_tokens + step, np.int32), np.arange(slots))
    return read - started, time.perf_counter() - read


def bytes_per_step(bundle: Bundle) -> int:
    """Weights that a step of any width reads: all but the embedding, which is looked up, unless it is the head too."""
    manifest, architecture = bundle.manifest, bundle.manifest.architecture
    files = sum(file.size for file in manifest.files if file.path.endswith(WEIGHTS))
    number = 2 if manifest.kv_cache.dtype == "float16" else 4
    return files - number * architecture.vocab_size * architecture.hidden_size


def bandwidth(bundle: Bundle) -> float:
    """Bytes a second: of copies on the device, each byte read and written, or of reads by this CPU."""
    if bundle.manifest.device is None:
        return read_bandwidth(2)
    from megrez.engines.tensorrt.cuda import Cuda

    cuda = Cuda(bundle.manifest.device.library)
    source, to = (cuda("cudaMalloc", COPIED) for _ in range(2))
    kind = cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        cuda("cudaMemcpy", to, source, COPIED, kind)
        cuda("cudaDeviceSynchronize")
        best = min(best, time.perf_counter() - started)
    for address in (source, to):
        cuda("cudaFree", address)
    return 2 * COPIED / best


@click.command()
@click.argument("bundle_folder", metavar="BUNDLE")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--batch", type=int, multiple=True, default=(1,), show_default=True)
@click.option("--prompt-tokens", default=128, show_default=True)
@click.option("--output-tokens", default=64, show_default=True)
def main(bundle_folder: str, folder: Path, batch: tuple[int, ...], prompt_tokens: int, output_tokens: int) -> None:
    bundle = open_bundle(bundle_folder)
    found = compute(bundle, folder)
    found["speed"] = {str(size): speed(bundle, size, prompt_tokens, output_tokens) for size in batch}
    if "1" in found["speed"]:
        rate = found["speed"]["1"]["decode"]
        found |= {"bandwidth": bandwidth(bundle), "bytes_per_step": bytes_per_step(bundle)}
        found["bandwidth_share"] = rate * found["bytes_per_step"] / found["bandwidth"]
    (folder / "probe.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
