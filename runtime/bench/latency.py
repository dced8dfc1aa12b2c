"""The latency view: prefill and decode speed of a bare session, without a server, a tokenizer or other requests."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from megrez.runtime.bench.figures import spread
from megrez.runtime.errors import UsageError
from megrez.runtime.generate import generate
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.engine import CHUNK
from megrez.runtime.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measured generation; ttft_s is the time from the start to the first token, of the last of several streams."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    ttft_s: float


def measure(
    session: Session,
    *,
    prompt_tokens: int,
    output_tokens: int,
    repeat: int,
    seed: int = 0,
    started: Callable[[], None] = lambda: None,
) -> Iterator[Run]:
    """Generate `output_tokens` (2 or more) after a random prompt, greedily, `repeat` times after a warm-up.

    A session with several slots generates in all of them: prefill one after the other, then decode together; speeds are
    totals. started: called after the warm-up. Raises UsageError, before anything runs, if prompt and output do not fit
    the context.
    """
    if prompt_tokens + output_tokens - 1 > session.capacity:
        raise UsageError(
            f"{prompt_tokens} prompt and {output_tokens} output tokens do not fit the context of {session.capacity}: "
            "measure fewer"
        )
    prompt_ids = np.random.default_rng(seed).integers(session.vocab_size, size=prompt_tokens).tolist()
    run = _run if session.slots == 1 else _run_together

    def runs() -> Iterator[Run]:
        run(session, prompt_ids, output_tokens)
        started()
        for _ in range(repeat):
            yield run(session, prompt_ids, output_tokens)

    return runs()


def summarise_runs(runs: Sequence[Run]) -> dict[str, Any]:
    """Medians, and after them each run and their spread."""
    kept = [asdict(run) for run in runs]
    medians = {name: statistics.median(run[name] for run in kept) for name in kept[0]}
    return {**medians, "spread": spread(kept), "repetitions": kept}


def _run(session: Session, prompt_ids: list[int], output_tokens: int) -> Run:
    steps = list(generate(session, prompt_ids, SamplingParams(), stop_ids=(), max_tokens=output_tokens))
    ttft_s = steps[0].seconds
    decode_s = sum(step.seconds for step in steps[1:])
    return Run(
        prefill_tokens_per_s=len(prompt_ids) / ttft_s,
        decode_tokens_per_s=(output_tokens - 1) / decode_s,
        ttft_s=ttft_s,
    )


def _run_together(session: Session, prompt_ids: list[int], output_tokens: int) -> Run:
    slots, length = np.arange(session.slots), len(prompt_ids)
    ids = np.zeros(session.slots, np.int64)
    started = time.perf_counter()
    for slot in slots:
        for at in range(0, length, CHUNK):
            part = prompt_ids[at : at + CHUNK]
            logits = session.step(part, [at], [len(part) - 1], slots=[slot])
        ids[slot] = logits[0].argmax()
    first = time.perf_counter()
    for at in range(length, length + output_tokens - 1):
        ids = session.step(ids, np.full(len(slots), at), slots).argmax(axis=1)
    return Run(
        prefill_tokens_per_s=len(slots) * length / (first - started),
        decode_tokens_per_s=len(slots) * (output_tokens - 1) / (time.perf_counter() - first),
        ttft_s=first - started,
    )
