"""Whether what a request gets depends on the requests beside it: answers in a full batch against those run alone.

    python benchmarks/batch_independence.py BUNDLE TEXT [--requests 64] [--slots 8] [--output 48] [--threads 1]

Prompts are slices of TEXT of mixed lengths, every eighth one begins like an earlier one; every other request is
sampled with a seed of its own. All go to one LLM at once, then one after the other to a new LLM of the same bundle that
has as many slots. Exits with 1 where an answer differs, and says where and by what margin the token was decided.
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from megrez.runtime import LLM, SamplingParams
from megrez.runtime.serving.outputs import CompletionOutput

LONGEST = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    prompt: list[int]
    params: SamplingParams

    @property
    def kind(self) -> str:
        return "sampled" if self.params.temperature else "greedy"


def draw(tokens: Sequence[int], count: int, output: int) -> list[Asked]:
    source = random.Random(0)
    asked: list[Asked] = []
    for at in range(count):
        length = round(4 * (LONGEST / 4) ** source.random())
        start = source.randrange(len(tokens) - length)
        prompt = list(tokens[start : start + length])
        if at % 8 == 7:
            before = source.choice(asked).prompt
            prompt = before[: max(len(before) // 2, 1)] + prompt
        sampling = {"temperature": 0.8, "top_p": 0.95, "seed": at} if at % 2 else {"temperature": 0.0}
        longest = source.randrange(output // 4, output + 1)
        asked.append(Asked(prompt=prompt, params=SamplingParams(max_tokens=longest, logprobs=2, **sampling)))
    return asked


def answers(asked: Sequence[Asked], path: Path, *, slots: int, threads: int, together: bool) -> list[CompletionOutput]:
    with LLM(path, slots=slots, threads=threads, context=2 * LONGEST + 200) as llm:
        if together:
            found = llm.generate([one.prompt for one in asked], [one.params for one in asked])
        else:
            found = [llm.generate([one.prompt], one.params)[0] for one in asked]
    return [one.outputs[0] for one in found]


def describe(together: CompletionOutput, alone: CompletionOutput) -> str:
    """Where two answers part, and the difference of the two best log-probabilities there."""
    pairs = list(zip(together.token_ids, alone.token_ids, strict=False))
    at = next((at for at, (one, other) in enumerate(pairs) if one != other), len(pairs))
    if at == len(pairs):
        return f"one ends after {at} tokens, {len(alone.token_ids)} alone"
    assert alone.logprobs is not None
    (_, best), (_, second) = alone.logprobs[at].top
    one, other = pairs[at]
    return f"token {at}: {one} in the batch, {other} alone; the two likeliest differ by {best - second:.6f}"


def drift(together: CompletionOutput, alone: CompletionOutput) -> float:
    """The largest difference of the log-probabilities of the tokens before the answers part."""
    assert together.logprobs is not None and alone.logprobs is not None
    most = 0.0
    for one, other in zip(together.logprobs, alone.logprobs, strict=False):
        if one.token != other.token:
            break
        most = max(most, abs(one.logprob - other.logprob))
    return most


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("text", type=click.Path(exists=True, path_type=Path))
@click.option("--requests", default=64, show_default=True)
@click.option("--slots", default=8, show_default=True)
@click.option("--output", default=48, show_default=True, help="Most tokens of an answer.")
@click.option("--threads", default=1, show_default=True)
def main(bundle: Path, text: Path, requests: int, slots: int, output: int, threads: int) -> None:
    with LLM(bundle, slots=1, threads=1, context=16) as llm:
        tokens = llm.text.encode(text.read_text()[:100_000])
    asked = draw(tokens, requests, output)
    shape = {"slots": slots, "threads": threads}
    pairs = list(
        zip(
            answers(asked, bundle, **shape, together=True), answers(asked, bundle, **shape, together=False), strict=True
        )
    )
    wrong = 0
    for kind in ("greedy", "sampled"):
        own = [(at, pair) for at, (one, pair) in enumerate(zip(asked, pairs, strict=True)) if one.kind == kind]
        differing = [(at, one, other) for at, (one, other) in own if one.token_ids != other.token_ids]
        largest = max(drift(*pair) for _, pair in own)
        identical, tokens_seen = len(own) - len(differing), sum(len(one.token_ids) for _, (one, _) in own)
        print(
            f"{kind}: {identical} of {len(own)} identical, {tokens_seen} tokens; log-probabilities differ by at most "
            f"{largest:.2g}"
        )
        for at, one, other in differing:
            print(f"  request {at} ({len(asked[at].prompt)} prompt tokens), {describe(one, other)}")
        wrong += len(differing)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
