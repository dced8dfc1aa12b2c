"""Logits, greedy ids and speed of one bundle, as JSON; in a separate process, because it may crash.

python benchmarks/gpu_probe.py BUNDLE FOLDER [--batch 1 --batch 8] [--prompt-tokens 128] [--output-tokens 64] [--cpu]

Writes FOLDER/logits.npy, for every token of a fixed random prompt; FOLDER/steps.npy, for greedy steps after it;
FOLDER/ragged.npy, for the same prompt's tokens where sequences of several lengths are decoded in one step; and
FOLDER/probe.json: the ids of the greedy steps, and what `megrez bench` says by batch.
--cpu: a cuda-* bundle on CPU kernels, which are not timed.
"""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from megrez.engines.ort.cuda import open_on_cpu
from megrez.runtime.bench.run import run_latency
from megrez.runtime.bundle import Bundle, open_bundle
from megrez.runtime.engines import open_session
from megrez.runtime.session import Session

# Short enough for every bundle that is checked; long enough for several chunks of a prompt.
CHECKED, GENERATED = 96, 32
RAGGED = (95, 48, 7)
Opener = Callable[..., Session]


def checked_ids(vocab_size: int) -> list[int]:
    found: list[int] = np.random.default_rng(1).integers(vocab_size, size=CHECKED).tolist()
    return found


def compute(bundle: Bundle, folder: Path, opener: Opener) -> dict[str, Any]:
    """Write the logits of a prompt read in one step and of greedy steps after it; returns the steps' ids."""
    with contextlib.closing(opener(bundle, threads=None)) as session:
        prompt = checked_ids(session.vocab_size)
        logits = np.array(session.step(prompt, [0], np.arange(CHECKED)))
        np.save(folder / "logits.npy", logits)
        steps, ids = [logits[-1]], [int(logits[-1].argmax())]
        for at in range(CHECKED, CHECKED + GENERATED - 1):
            steps.append(np.array(session.step(ids[-1:], [at], [0])[0]))
            ids.append(int(steps[-1].argmax()))
        np.save(folder / "steps.npy", np.array(steps))
        return {"ids": ids}


def compute_ragged(bundle: Bundle, folder: Path, opener: Opener) -> dict[str, Any]:
    """Three sequences read the prompt and then each decodes one of its tokens again, at different starts, with logits
    of all and of some: recorded CUDA graphs must work for every start. Then some slots are left out, one sequence reads
    a prompt while two decode, and one continues from a copy.
    """
    with contextlib.closing(opener(bundle, threads=None, slots=len(RAGGED))) as session:
        prompt, lengths = np.array(checked_ids(session.vocab_size)), np.array(RAGGED, np.int32)
        found, positions = [], []
        fill = np.tile(prompt, (len(RAGGED), 1)), np.zeros(len(RAGGED), np.int32), np.zeros(0, np.int64)
        for index in ([0, 1, 2], [1], [2, 0], [0, 1, 2]):
            session.step(*fill)
            found.append(np.array(session.step(prompt[lengths][:, None], lengths, np.array(index))))
            positions += [int(lengths[one]) for one in index]
            lengths = lengths[[1, 2, 0]]
        session.step(*fill)
        for slots in ([0, 2], [2], [1, 0], [0, 1, 2]):
            starts = lengths[slots]
            found.append(np.array(session.step(prompt[starts], starts, np.arange(len(slots)), slots=slots)))
            positions += starts.tolist()
        mixed = np.concatenate([prompt[:CHECKED], prompt[lengths[1:]]])
        starts, counts = np.array([0, *lengths[1:]]), np.array([CHECKED, 1, 1])
        found.append(np.array(session.step(mixed, starts, CHECKED - 1 + np.arange(3), counts=counts)))
        positions += [CHECKED - 1, *lengths[1:].tolist()]
        session.copy(0, 1, CHECKED - 1)
        found.append(np.array(session.step(prompt[-1:], [CHECKED - 1], [0], slots=[1])))
        positions.append(CHECKED - 1)
        np.save(folder / "ragged.npy", np.concatenate(found))
        return {"ragged_positions": positions}


def speed(bundle: Bundle, batch: int, prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
    """What `megrez bench` says of `batch` sequences together."""
    result = run_latency(
        bundle,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        repeat=2,
        slots=batch,
        context=None,
        threads=None,
        seed=0,
    )
    device = {name: value for name, value in result["device"].items() if name != "sensors"}
    return {
        "prefill": result["prefill_tokens_per_s"],
        "decode": result["decode_tokens_per_s"],
        "bandwidth_share": result["decode_bandwidth_share"],
        "bandwidth": result["environment"]["memory_read_bytes_per_s"],
        "device": device,
    }


@click.command()
@click.argument("bundle_folder", metavar="BUNDLE")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--batch", type=int, multiple=True, default=(1,), show_default=True)
@click.option("--prompt-tokens", default=128, show_default=True)
@click.option("--output-tokens", default=64, show_default=True)
@click.option("--cpu", is_flag=True, help="A cuda-* bundle on CPU kernels.")
def main(
    bundle_folder: str, folder: Path, batch: tuple[int, ...], prompt_tokens: int, output_tokens: int, cpu: bool
) -> None:
    bundle, opener = open_bundle(bundle_folder), open_on_cpu if cpu else open_session
    found = compute(bundle, folder, opener)
    if max(batch) >= len(RAGGED):
        found |= compute_ragged(bundle, folder, opener)
    if not cpu:
        found["speed"] = {str(size): speed(bundle, size, prompt_tokens, output_tokens) for size in batch}
    (folder / "probe.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
