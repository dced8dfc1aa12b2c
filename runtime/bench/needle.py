"""Needle in a haystack: whether a model finds a fact again, by the length of its prompt and the fact's depth."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from megrez.runtime.bench.haystack import longest_prompt, make_needle
from megrez.runtime.errors import UsageError
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.llm import LLM

Result = dict[str, Any]
ANSWER_TOKENS = 24
DEPTHS = tuple(n / 9 for n in range(10))
# No sentence of the hay has fewer tokens in any tokenizer of words or pieces of words.
_FEWEST_TOKENS = 5


def default_lengths(context: int) -> tuple[int, ...]:
    """Ten prompts that grow to the context, less the answer."""
    return tuple((context - ANSWER_TOKENS) * n // 10 for n in range(1, 11))


def run_cells(
    llm: LLM, lengths: Sequence[int], depths: Sequence[float], *, context: int, repeat: int, seed: int, chat: bool
) -> Iterator[Result]:
    """A cell per length and depth, each asked about `repeat` facts, greedily.

    chat: the prompt is a user's message; otherwise plain text that the answer continues. Raises UsageError, before
    anything runs, for lengths that do not fit.
    """
    if faults := [one for one in lengths if not 1 <= one <= context - ANSWER_TOKENS]:
        raise UsageError(
            f"a prompt of {faults[0]} tokens was asked for, the context holds {context} with {ANSWER_TOKENS} for the "
            f"answer: choose lengths from 1 to {context - ANSWER_TOKENS}"
        )
    encode = _encoder(llm, chat)

    def cells() -> Iterator[Result]:
        for length in lengths:
            for depth in depths:
                yield _cell(llm, encode, length, depth, repeat, seed)

    return cells()


def _encoder(llm: LLM, chat: bool) -> Callable[[str], list[int]]:
    if chat:
        return lambda text: llm.encode_chat([{"role": "user", "content": text}])
    return lambda text: llm.text.encode(f"{text}\nAnswer:")


def _cell(llm: LLM, encode: Callable[[str], list[int]], length: int, depth: float, repeat: int, seed: int) -> Result:
    prompts, answers, found = list[int](), list[str](), 0
    for turn in range(seed, seed + repeat):
        needle = make_needle(turn)
        most = length // _FEWEST_TOKENS
        prompt = longest_prompt(needle, depth, turn, lambda text: len(encode(text)) <= length, most)
        if prompt is None:
            raise UsageError(f"a prompt of {length} tokens has no room for the question: choose a greater length")
        ids = encode(prompt)
        (output,) = llm.generate([ids], SamplingParams(temperature=0.0, max_tokens=ANSWER_TOKENS))
        prompts.append(len(ids))
        answer = output.outputs[0].text
        answers.append(answer)
        found += needle.answer in answer
    return {
        "length": length,
        "depth": depth,
        "found": found,
        "of": repeat,
        "prompt_tokens": prompts,
        "answers": answers,
    }


def needle_table(result: Mapping[str, Any]) -> str:
    """Facts found, in per cent: a row per depth, a column per length."""
    cells = {(one["depth"], one["length"]): one["found"] / one["of"] for one in result["cells"]}
    lengths = sorted({length for _, length in cells})
    lines = [f"{'depth':<8}" + "".join(f"{length:>8}" for length in lengths)]
    for depth in sorted({depth for depth, _ in cells}):
        shares = (cells.get((depth, length)) for length in lengths)
        line = "".join(f"{'-' if share is None else f'{share:.0%}':>8}" for share in shares)
        lines.append(f"{f'{depth:.0%}':<8}{line}")
    found, of = (sum(one[name] for one in result["cells"]) for name in ("found", "of"))
    return "\n".join([*lines, f"found {found} of {of}"])
