"""A fact in a haystack, asked of a stand-in that reads the prompt's beginning only."""

import re
from types import SimpleNamespace

import pytest

from megrez.runtime.bench.haystack import build_prompt, longest_prompt, make_needle, sentences
from megrez.runtime.bench.needle import ANSWER_TOKENS, default_lengths, needle_table, run_cells
from megrez.runtime.errors import UsageError


class Reader:
    """A token is a word. It finds a fact among the first `sees` words."""

    def __init__(self, sees: int) -> None:
        self.sees, self.prompts = sees, []
        self.text = SimpleNamespace(encode=lambda text: text.split())

    def encode_chat(self, messages):
        (message,) = messages
        return ["<user>", *message["content"].split()]

    def generate(self, prompts, params):
        (words,) = prompts
        self.prompts.append(" ".join(words))
        assert params.temperature == 0 and params.max_tokens == ANSWER_TOKENS
        seen = re.search(r"secret number of \w+ is (\d+)", " ".join(words[: self.sees]))
        return [SimpleNamespace(outputs=[SimpleNamespace(text=f"It is {seen[1]}." if seen else "I do not know.")])]


def cells(reader, lengths, depths, **options):
    return list(
        run_cells(reader, lengths, depths, **{"context": 1000, "repeat": 1, "seed": 0, "chat": True, **options})
    )


def test_a_fact_is_found_where_the_model_looks():
    reader = Reader(sees=200)
    found = {(one["length"], one["depth"]): one["found"] for one in cells(reader, (100, 600), (0.0, 0.5, 1.0))}
    assert found == {(100, 0.0): 1, (100, 0.5): 1, (100, 1.0): 1, (600, 0.0): 1, (600, 0.5): 0, (600, 1.0): 0}


def test_prompts_are_as_long_as_asked_and_have_the_fact_at_its_depth():
    reader = Reader(sees=900)
    for cell, prompt in zip(cells(reader, (300, 900), (0.0, 0.3, 1.0)), reader.prompts, strict=True):
        words = prompt.split()
        assert cell["length"] - 15 < len(words) <= cell["length"] and cell["prompt_tokens"] == [len(words)]
        at = prompt.index("The secret number") / prompt.index("What is the secret number")
        assert at == pytest.approx(cell["depth"], abs=0.1)


def test_repetitions_ask_for_other_facts_and_are_counted():
    reader = Reader(sees=60)
    (cell,) = cells(reader, (100,), (0.4,), repeat=5)
    assert (cell["of"], len(cell["answers"]), len(set(reader.prompts))) == (5, 5, 5)
    assert 0 <= cell["found"] <= 5


def test_hay_has_no_number_and_grows_by_its_end():
    assert not re.search(r"\d", " ".join(sentences(400, 1)))
    assert sentences(400, 1)[:50] == sentences(50, 1)
    needle = make_needle(3)
    assert needle.answer in needle.fact and needle.answer not in needle.question


def test_a_length_without_room_for_the_question_has_no_prompt():
    needle = make_needle(0)
    assert longest_prompt(needle, 0.5, 0, lambda text: False, 10) is None
    assert longest_prompt(needle, 0.5, 0, lambda text: True, 3) == build_prompt(sentences(3, 0), needle, 0.5)
    with pytest.raises(UsageError, match="a prompt of 5 tokens has no room"):
        cells(Reader(1), (5,), (0.0,))


def test_impossible_lengths_are_refused_before_anything_runs():
    reader = Reader(1)
    with pytest.raises(UsageError, match="a prompt of 990 tokens was asked for, the context holds 1000"):
        cells(reader, (100, 990), (0.0,))
    assert reader.prompts == [] and default_lengths(1024)[-1] == 1000


def test_the_table_has_a_row_per_depth_and_a_column_per_length():
    text = needle_table({"cells": cells(Reader(200), (100, 600), (0.0, 1.0))})
    assert [line.split() for line in text.splitlines()] == [
        ["depth", "100", "600"], ["0%", "100%", "100%"], ["100%", "100%", "0%"], ["found", "3", "of", "4"]
    ]  # fmt: skip
