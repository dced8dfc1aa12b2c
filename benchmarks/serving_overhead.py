"""What everything above the engine costs per step and per token: the LLM beside the bare session, in one process.

python benchmarks/serving_overhead.py BUNDLE [--streams 1 --streams 8] [--rounds 10] [--threads 2] [--json-file FILE]

In every round the bare session decodes (one step after the other, argmax between them), then an LLM over the same
session does, and the other way round in every second one. "between steps" is the time from the end of a decode step to
the begin of the next: sampling, text, sinks and scheduling. "interval" is from begin to begin, less the bare session's
step: it also has what the engine's own step loses. All are medians of the rounds' medians.

"loop alone" is the time between the steps of a stand-in that returns random logits of the same vocabulary at once, and
"after a read" the same if each of its steps reads 128 MiB, as a decode step reads weights: the difference is what the
loop's own code and data cost when they are no longer in the processor's caches.
"""

import contextlib
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from noted import NotedSession, Stream, llm_over, percentile, random_ids
from numpy.typing import ArrayLike, NDArray

from megrez.runtime.bench.environment import describe_environment, load_average
from megrez.runtime.bundle import Bundle, open_bundle
from megrez.runtime.engines import open_session
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.engine import Engine
from megrez.runtime.serving.request import Request
from megrez.runtime.session import Logits, Session

Figures = dict[str, float]
READ = 128 << 20


def bare(session: Session, prompts: list[list[int]], output_tokens: int) -> Figures:
    """Seconds of a decode step of all slots, and of the argmax after it."""
    slots = np.arange(len(prompts))
    ids = np.zeros(len(prompts), np.int64)
    for slot, prompt in enumerate(prompts):
        ids[slot] = session.step(prompt, [0], [len(prompt) - 1], slots=[slot])[0].argmax()
    steps, picks = [], []
    for at in range(output_tokens - 1):
        began = time.perf_counter()
        starts = np.full(len(slots), len(prompts[0]) + at)
        logits = session.step(ids, starts, slots, slots=slots, counts=np.ones(len(slots), np.int64))
        ended = time.perf_counter()
        ids = logits.argmax(axis=1)
        steps.append(ended - began)
        picks.append(time.perf_counter() - ended)
    return {"step": statistics.median(steps), "argmax": statistics.median(picks)}


def served(
    bundle: Bundle, session: Session, prompts: list[list[int]], output_tokens: int, temperature: float
) -> Figures:
    """Seconds of the LLM's decode steps of all slots, and between and from one to the next of them."""
    noted = NotedSession(session=session)
    with llm_over(bundle, noted) as llm:
        streams = [
            Stream(llm, prompt, output_tokens, temperature=temperature, top_p=0.9 if temperature else 1.0, seed=at)
            for at, prompt in enumerate(prompts)
        ]
        for stream in streams:
            stream.wait()
    full = (1,) * len(prompts)
    pairs = [
        (one, other)
        for one, other in zip(noted.steps, noted.steps[1:], strict=False)
        if one.counts == other.counts == full
    ]
    between = [other.began - one.ended for one, other in pairs]
    return {
        "step": statistics.median(one.ended - one.began for one, _ in pairs),
        "between": statistics.median(between),
        "between_p99": percentile(between, 99),
        "interval": statistics.median(other.began - one.began for one, other in pairs),
    }


@dataclass(slots=True, kw_only=True)
class StandIn:
    """A Session without a model: random logits; `read` is summed in every step. between: seconds between steps."""

    slots: int
    vocab_size: int
    read: NDArray[np.float32]
    capacity: int = 1 << 16
    between: list[float] = field(default_factory=list)
    _ended: float | None = None
    _logits: Logits = field(init=False)

    def __post_init__(self) -> None:
        self._logits = np.random.default_rng(0).standard_normal((self.slots, self.vocab_size), np.float32)

    def step(self, tokens: ArrayLike, starts: ArrayLike, logits_index: ArrayLike, **where: ArrayLike | None) -> Logits:
        if self._ended is not None:
            self.between.append(time.perf_counter() - self._ended)
        self.read.max(initial=0)
        logits = self._logits[: np.size(logits_index)]
        self._ended = time.perf_counter()
        return logits

    def copy(self, source: int, target: int, length: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def loop_alone(vocab_size: int, streams: int, read: int, steps: int = 200) -> float:
    """Median seconds between the steps of a stand-in that reads `read` bytes in each."""
    session = StandIn(slots=streams, vocab_size=vocab_size, read=np.zeros(read // 4, np.float32))
    engine = Engine(session, stop_ids=())
    for _ in range(streams):
        engine.add(
            Request(prompt_ids=[0], params=SamplingParams(temperature=0, max_tokens=None), sink=lambda found: None)
        )
    for _ in range(steps):
        engine.step()
    return statistics.median(session.between)


def measure(bundle: Bundle, streams: int, *, tokens: int, rounds: int, threads: int, temperature: float) -> Figures:
    """Microseconds, and shares of the bare session's step."""
    alone: list[Figures] = []
    above: list[Figures] = []
    with contextlib.closing(open_session(bundle, threads=threads, slots=streams, capacity=2 * tokens)) as session:
        for turn in range(rounds + 1):
            prompts = [random_ids(session.vocab_size, tokens, turn, at) for at in range(streams)]
            for is_bare in (True, False)[:: -1 if turn % 2 else 1]:
                if is_bare:
                    alone.append(bare(session, prompts, tokens))
                else:
                    above.append(served(bundle, session, prompts, tokens, temperature))
    step, argmax = (statistics.median(one[name] for one in alone[1:]) for name in ("step", "argmax"))
    found = {name: statistics.median(one[name] for one in above[1:]) for name in above[0]}
    longer = statistics.median(on["interval"] - off["step"] for on, off in zip(above[1:], alone[1:], strict=True))
    return {
        "streams": streams,
        "bare_step_us": step * 1e6,
        "bare_argmax_us": argmax * 1e6,
        "llm_step_us": found["step"] * 1e6,
        "between_steps_us": found["between"] * 1e6,
        "between_steps_p99_us": found["between_p99"] * 1e6,
        "between_steps_us_per_token": found["between"] * 1e6 / streams,
        "between_steps_share": found["between"] / step,
        "interval_less_bare_step_us": longer * 1e6,
        "interval_less_bare_step_us_per_token": longer * 1e6 / streams,
        "interval_less_bare_step_share": longer / step,
        "loop_alone_us": loop_alone(session.vocab_size, streams, 0) * 1e6,
        "loop_alone_after_a_read_us": loop_alone(session.vocab_size, streams, READ) * 1e6,
    }


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--streams", multiple=True, type=click.IntRange(min=1), default=(1, 8), show_default=True)
@click.option("--tokens", type=click.IntRange(min=8), default=128, show_default=True, help="Of prompt and of answer.")
@click.option("--rounds", type=click.IntRange(min=1), default=10, show_default=True, help="After one that warms up.")
@click.option("--threads", default=2, show_default=True)
@click.option("--temperature", default=0.0, show_default=True, help="Above 0 with top_p 0.9.")
@click.option("--json-file", type=click.Path(path_type=Path))
def main(
    bundle: Path,
    streams: tuple[int, ...],
    tokens: int,
    rounds: int,
    threads: int,
    temperature: float,
    json_file: Path | None,
) -> None:
    opened = open_bundle(bundle)
    environment: dict[str, Any] = describe_environment(opened, threads)
    found = [
        measure(opened, count, tokens=tokens, rounds=rounds, threads=threads, temperature=temperature)
        for count in streams
    ]
    environment["load_average_after"] = load_average()
    click.echo(f"{'':<40}" + "".join(f"{one['streams']:>12} streams" for one in found))
    for name in list(found[0])[1:]:
        click.echo(f"{name:<40}" + "".join(f"{one[name]:>20.4g}" for one in found))
    if json_file is not None:
        result = {"tokens": tokens, "rounds": rounds, "temperature": temperature, "results": found}
        json_file.write_text(json.dumps(result | {"environment": environment}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
