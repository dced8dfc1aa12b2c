"""Decoding with and without drafts, in turns in one process: tokens per second, acceptance, and whether ids are equal.

    python benchmarks/speculation.py BUNDLE [--tokens 200] [--rounds 3] [--threads 2] [--cpu-time] [--json FILE]
    python benchmarks/speculation.py BUNDLE --draft SMALL --acceptance 0.8 [...]

Every run has a new engine and a new Speculation, which know nothing of earlier runs, over one session. Seconds are
those from the first token to the last, medians of the rounds; a kind's ratio is that of its seconds summed up.

With --acceptance, no lookup: SMALL is run for its time alone, and each drafted token is what the model will generate
with this probability, and another one otherwise. It needs neither a good pair of models nor the same tokenizer.
"""

import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
from speculation_prompts import PROMPTS

from megrez.runtime.bench.environment import describe_environment
from megrez.runtime.bundle import Bundle, open_bundle
from megrez.runtime.chat import ChatTemplate
from megrez.runtime.engines import open_session
from megrez.runtime.generate import follow
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving import engine
from megrez.runtime.serving.drafting import draft_model
from megrez.runtime.serving.drafting.draft_model import DraftModel
from megrez.runtime.serving.drafting.drafter import Draft, Drafter, Wanted
from megrez.runtime.serving.drafting.lookup import PromptLookup
from megrez.runtime.serving.drafting.speculation import Speculation
from megrez.runtime.serving.engine import Engine
from megrez.runtime.session import Session
from megrez.runtime.text import Text

clock = time.perf_counter


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    kind: str
    name: str
    prompt: list[int]
    params: SamplingParams


@dataclass(slots=True, kw_only=True)
class Run:
    """seconds: of decoding, by round. ids: of every round, which are to be equal."""

    seconds: list[float] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0


class Assumed:
    """A Drafter that is right as often as is assumed, after the small model has taken its time.

    answer: prompt and output, as they are without drafts.
    """

    expected = (0.7,)

    def __init__(self, session: Session, answer: Sequence[int], acceptance: float, *, vocab_size: int) -> None:
        self._model = DraftModel(session, vocab_size=vocab_size)
        self._answer, self._acceptance, self._vocab_size = answer, acceptance, vocab_size
        self._small_vocab = session.vocab_size
        self._random = np.random.default_rng(0)

    @property
    def seconds(self) -> float:
        return self._model.seconds

    def prospects(self, slot: int, ids: Sequence[int], most: int) -> Sequence[int]:
        return self._model.prospects(slot, ids, min(most, len(self._answer) - len(ids)))

    def draft(self, wanted: Sequence[Wanted]) -> list[Draft]:
        read = [dataclasses.replace(one, ids=[token % self._small_vocab for token in one.ids]) for one in wanted]
        took = self._model.draft(read)
        return [self._assumed(one) if drafted else [] for one, drafted in zip(wanted, took, strict=True)]

    def _assumed(self, one: Wanted) -> Draft:
        known = self._answer[len(one.ids) : len(one.ids) + one.count]
        right = self._random.random(len(known)) < self._acceptance
        return [token if good else (token + 1) % self._vocab_size for token, good in zip(known, right, strict=True)]

    def release(self, slot: int) -> None:
        self._model.release(slot)

    def close(self) -> None:
        pass


def questions(bundle: Bundle, tokens: int) -> Iterator[Asked]:
    text = Text.open(bundle)
    template = ChatTemplate.open(bundle, text)
    for kind, name, question, sampling in PROMPTS:
        shown = question if template is None else template.render([{"role": "user", "content": question}])
        ids = text.encode(shown, add_bos=None if template is None else False)
        yield Asked(kind=kind, name=name, prompt=ids, params=SamplingParams(max_tokens=tokens, **sampling))


def random_questions(vocab_size: int, tokens: int) -> Iterator[Asked]:
    """For a model without a meaning, whose answers are never drafted from the text."""
    for seed in range(3):
        prompt = np.random.default_rng(seed).integers(vocab_size, size=128).tolist()
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        yield Asked(kind="assumed", name=f"random prompt {seed}", prompt=prompt, params=params)


def generate(session: Session, asked: Asked, stop_ids: Sequence[int], drafter: Drafter | None, run: Run) -> None:
    speculation = None if drafter is None else Speculation(drafter)
    loop = Engine(session, stop_ids=stop_ids, speculation=speculation)
    answer = follow(loop, list(asked.prompt), asked.params)
    tokens = [next(answer)]
    started = clock()
    tokens += answer
    run.seconds.append(clock() - started)
    run.ids.append([one.token for one in tokens])
    run.drafted, run.accepted = tokens[-1].drafted_tokens, tokens[-1].accepted_tokens


def compare(
    session: Session, asked: Asked, stop_ids: Sequence[int], rounds: int, small: Session | None, acceptance: float
) -> dict[str, Any]:
    runs = {"off": Run(), "on": Run()}
    for turn in range(rounds):
        for name in list(runs)[:: -1 if turn % 2 else 1] if turn else ["off", "on"]:
            drafter: Drafter | None = None
            if name == "on" and small is None:
                drafter = PromptLookup()
            elif name == "on" and small is not None:
                answer = [*asked.prompt, *runs["off"].ids[0]]
                drafter = Assumed(small, answer, acceptance, vocab_size=session.vocab_size)
            generate(session, asked, stop_ids, drafter, runs[name])
    on, off = runs["on"], runs["off"]
    return {
        "kind": asked.kind,
        "name": asked.name,
        "tokens": len(off.ids[0]),
        "off_s": statistics.median(off.seconds),
        "on_s": statistics.median(on.seconds),
        "drafted": on.drafted,
        "accepted": on.accepted,
        "equal": all(ids == off.ids[0] for ids in (*off.ids, *on.ids)),
    }


def line(name: str, found: Sequence[dict[str, Any]]) -> str:
    tokens, off, on, drafted, accepted = (
        sum(one[key] for one in found) for key in ("tokens", "off_s", "on_s", "drafted", "accepted")
    )
    count = tokens - len(found)
    equal = "ids equal" if all(one["equal"] for one in found) else "IDS DIFFER"
    return (
        f"{name:20} {off / on:5.2f}x  {count / off:6.1f} -> {count / on:6.1f} tokens/s  "
        f"{accepted:5d} of {drafted:5d} drafted accepted, {tokens:5d} generated, {equal}"
    )


def summary(kind: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of all answers of a kind: speeds and ratio of the seconds summed up, and the lowest and highest single ratio."""
    tokens, off, on, drafted, accepted = (
        sum(one[key] for one in found) for key in ("tokens", "off_s", "on_s", "drafted", "accepted")
    )
    ratios = [one["off_s"] / one["on_s"] for one in found]
    return {
        "kind": kind,
        "off_tokens_per_s": (tokens - len(found)) / off,
        "on_tokens_per_s": (tokens - len(found)) / on,
        "ratio": off / on,
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "drafted": drafted,
        "accepted": accepted,
        "equal": all(one["equal"] for one in found),
    }


def use_cpu_time() -> None:
    """Here, and for what the engine and the draft model measure themselves."""
    global clock
    clock = time.process_time
    engine.time = draft_model.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]


@click.command()
@click.argument("path", metavar="BUNDLE", type=click.Path(exists=True, path_type=Path))
@click.option("--tokens", default=200, show_default=True, help="Most tokens of an answer.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--draft", type=click.Path(exists=True, path_type=Path), help="Bundle whose time counts as drafting.")
@click.option("--acceptance", default=0.8, show_default=True, help="Assumed, with --draft.")
@click.option("--cpu-time", is_flag=True, help="Count the CPU seconds of one thread, on a machine that others use.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE")
def main(
    path: Path,
    tokens: int,
    rounds: int,
    threads: int,
    draft: Path | None,
    acceptance: float,
    cpu_time: bool,
    json_file: Path | None,
) -> None:
    if cpu_time:
        use_cpu_time()
        threads = 1
    bundle = open_bundle(path)
    found: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(contextlib.closing(open_session(bundle, threads=threads, capacity=1024)))
        small = None
        if draft is not None:
            opened = open_session(open_bundle(draft), threads=threads, capacity=1024)
            small = stack.enter_context(contextlib.closing(opened))
        asks = questions(bundle, tokens) if small is None else random_questions(session.vocab_size, tokens)
        for asked in asks:
            stop_ids = bundle.manifest.tokens.stop
            found.append(compare(session, asked, stop_ids, rounds, small, acceptance))
            print(line(asked.name, found[-1:]), flush=True)
    kinds = {
        kind: [one for one in found if one["kind"] == kind] for kind in dict.fromkeys(one["kind"] for one in found)
    }
    summaries = [summary(kind, own) for kind, own in kinds.items()]
    for one in summaries:
        print(line(f"all: {one['kind']}", kinds[one["kind"]]))
        print(f"{'':20} lowest {one['lowest_ratio']:.2f}x")
    if json_file is not None:
        result = {"summaries": summaries, "answers": found, "environment": describe_environment(bundle, threads)}
        json_file.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
