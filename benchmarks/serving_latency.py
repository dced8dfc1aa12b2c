"""What requests wait for: a chat's second turn, chats that alternate, and a long prompt among those that decode.

python benchmarks/serving_latency.py BUNDLE [--prompt 1000] [--long 2000] [--rounds 5] [--threads 2] [--json-file FILE]

Prompts are random tokens. Exits with 1 where a cache is not reused or a step has more prompt tokens than its chunk;
times are only reported.
"""

import contextlib
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import click
from noted import NotedSession, Stream, llm_over, percentile, random_ids

from megrez.runtime.bench.environment import describe_environment, load_average
from megrez.runtime.bundle import Bundle, open_bundle
from megrez.runtime.engines import open_session
from megrez.runtime.serving.engine import CHUNK, MIXED_CHUNK
from megrez.runtime.serving.llm import LLM

ANSWER, QUESTION = 32, 24
DECODERS = 7
Result = dict[str, Any]


class Chat:
    """turn: asks a question of `length` random tokens after all that was said."""

    def __init__(self, llm: LLM, *seed: int) -> None:
        self._llm, self._seed = llm, seed
        self.ids: list[int] = []
        self.turns: list[Stream] = []

    def turn(self, length: int) -> Stream:
        asked = random_ids(self._llm.session.vocab_size, length, *self._seed, len(self.turns))
        stream = Stream(self._llm, [*self.ids, *asked], ANSWER).wait()
        self.turns.append(stream)
        self.ids = stream.ids
        return stream

    def lost(self) -> list[str]:
        """Turns whose cache was not what the turn before left: all but its last token, which was never fed."""
        pairs = enumerate(zip(self.turns, self.turns[1:], strict=False), 2)
        return [
            f"turn {number} found {later.cached_tokens} cached tokens of {len(earlier.ids) - 1}"
            for number, (earlier, later) in pairs
            if later.cached_tokens != len(earlier.ids) - 1
        ]


def second_turns(llm: LLM, prompt: int, rounds: int) -> tuple[Result, list[str]]:
    """TTFT of a chat's first and second turn."""
    chats = [Chat(llm, 1, number) for number in range(rounds + 1)]
    for chat in chats:
        chat.turn(prompt)
        chat.turn(QUESTION)
    first, second = ([chat.turns[at].ttft_s for chat in chats[1:]] for at in (0, 1))
    ratios = [late / early for early, late in zip(first, second, strict=True)]
    found = {
        "first_turn_ttft_s": statistics.median(first),
        "second_turn_ttft_s": statistics.median(second),
        "second_over_first": statistics.median(ratios),
        "second_over_first_max": max(ratios),
    }
    return found, [fault for chat in chats for fault in chat.lost()]


def alternating(llm: LLM, prompt: int, turns: int) -> tuple[Result, list[str]]:
    """Two chats in turn: TTFT of the later turns over that of the first."""
    chats = [Chat(llm, 2, number) for number in range(2)]
    for number in range(turns):
        for chat in chats:
            chat.turn(prompt if number == 0 else QUESTION)
    ratios = [turn.ttft_s / chat.turns[0].ttft_s for chat in chats for turn in chat.turns[1:]]
    found = {"later_over_first": statistics.median(ratios), "later_over_first_max": max(ratios)}
    return found, [fault for chat in chats for fault in chat.lost()]


def long_prompt(
    llm: LLM, session: NotedSession, length: int, *, idle_tokens: int, seed: int
) -> tuple[Result, list[str]]:
    """ITL of sequences that decode, before a long prompt comes and while it is computed."""
    vocab = session.vocab_size
    steps = -(-length // MIXED_CHUNK)
    decoders = [Stream(llm, random_ids(vocab, 64, 3, seed, at), 2 * idle_tokens + 2 * steps) for at in range(DECODERS)]
    for one in decoders:
        one.began.wait()
    settled = time.perf_counter()
    while min(len(one.times) for one in decoders) < idle_tokens:
        time.sleep(0.01)
    noted = len(session.steps)
    late = Stream(llm, random_ids(vocab, length, 4, seed), 1).wait()
    for one in decoders:
        one.wait()
    idle = [gap for one in decoders for gap in one.gaps(settled, late.sent)]
    during = [gap for one in decoders for gap in one.gaps(late.sent, late.times[0])]
    mixed = [one for one in session.steps[noted:] if one.prompt_tokens]
    faults = [f"a step has {one.prompt_tokens} prompt tokens" for one in mixed if one.prompt_tokens > CHUNK]
    faults += [f"a step leaves decoders out: {one.counts}" for one in mixed if one.counts.count(1) < DECODERS]
    found = {
        "idle_itl_p50_s": percentile(idle, 50),
        "idle_itl_p99_s": percentile(idle, 99),
        "during_itl_p50_s": percentile(during, 50),
        "during_itl_p99_s": percentile(during, 99),
        "during_longest_gap_s": max(during),
        "mixed_step_tokens_p50": percentile([one.prompt_tokens for one in mixed], 50),
        "longest_mixed_step_s": max(one.ended - one.began for one in mixed),
        "p99_over_idle_p99": percentile(during, 99) / percentile(idle, 99),
        "p99_over_idle_p50": percentile(during, 99) / percentile(idle, 50),
        "long_prompt_ttft_s": late.ttft_s,
    }
    return found, faults


def medians(results: list[Result]) -> Result:
    return {name: statistics.median(one[name] for one in results) for name in results[0]}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--prompt", default=1000, show_default=True, help="Tokens of a chat's first turn.")
@click.option("--long", "long_tokens", default=2000, show_default=True, help="Tokens of the long prompt.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--idle-tokens", type=click.IntRange(min=8), default=64, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--json-file", type=click.Path(path_type=Path))
def main(
    bundle: Path, prompt: int, long_tokens: int, rounds: int, idle_tokens: int, threads: int, json_file: Path | None
) -> None:
    opened = open_bundle(bundle)
    environment: Result = describe_environment(opened, threads)
    found, faults = measure(opened, prompt, long_tokens, rounds=rounds, idle_tokens=idle_tokens, threads=threads)
    environment["load_average_after"] = load_average()
    settings = {"prompt": prompt, "long": long_tokens, "rounds": rounds, "least_mixed_chunk": MIXED_CHUNK}
    text = json.dumps({**settings, **found, "faults": faults, "environment": environment}, indent=2)
    click.echo(text)
    if json_file is not None:
        json_file.write_text(text + "\n", encoding="utf-8")
    sys.exit(bool(faults))


def measure(
    bundle: Bundle, prompt: int, long_tokens: int, *, rounds: int, idle_tokens: int, threads: int
) -> tuple[Result, list[str]]:
    capacity = max(long_tokens, prompt + 8 * (ANSWER + QUESTION)) + 64 + 2 * idle_tokens
    found: Result = {}
    faults: list[str] = []
    with contextlib.closing(open_session(bundle, threads=threads, slots=DECODERS + 1, capacity=capacity)) as session:
        noted = NotedSession(session=session)
        with llm_over(bundle, noted) as llm:
            found["second_turn"], lost = second_turns(llm, prompt, rounds)
            faults += lost
        with llm_over(bundle, noted) as llm:
            found["alternating"], lost = alternating(llm, prompt, turns=4)
            faults += lost
            runs = [
                long_prompt(llm, noted, long_tokens, idle_tokens=idle_tokens, seed=seed) for seed in range(rounds + 1)
            ]
            found["long_prompt"] = medians([run for run, _ in runs[1:]])
            faults += [fault for _, some in runs for fault in some]
    return found, faults


if __name__ == "__main__":
    main()
