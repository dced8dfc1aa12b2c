"""The scripts in examples/: the quick starts on a tiny checkpoint against transformers, the web search on a fake."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megrez.runtime import SamplingParams
from megrez.runtime.bundle import open_bundle
from megrez.runtime.chat import ChatTemplate
from megrez.runtime.model import Model
from megrez.runtime.text import Text
from tests.models import TURN_END
from tests.reference import greedy

EXAMPLES = Path(__file__).parent.parent / "examples"
CONTEXT = 96
Script = dict[str, Any]


def script(name: str) -> Script:
    """The functions of an example, which share one namespace; random draws become greedy."""
    found = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    if "main" in found:
        space = found["main"].__globals__
        space["SamplingParams"] = lambda **given: SamplingParams(max_tokens=given["max_tokens"])
    return found


def expected(checkpoint: Path, question: str) -> str:
    """What transformers answers, to the end of the context."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    answer = greedy(checkpoint, ids, CONTEXT - len(ids) + 1)
    return str(tokenizer.decode(answer)).removesuffix(TURN_END)


def test_the_quick_starts_answer_as_transformers_does(checkpoint_of, traced_once, tmp_path, capsys):
    """The folder is compiled by the first of them, once."""
    chicken, moons = "讲讲黄焖鸡的做法。", "Which planet has the most moons?"
    answer, second = expected(checkpoint_of(), chicken), expected(checkpoint_of(), moons)
    bundle = str(tmp_path / "b")
    capsys.readouterr()

    def said(name: str, *args: object) -> str:
        script(name)["main"](*args)
        return capsys.readouterr().out

    assert said("quickstart_modelscope", str(checkpoint_of()), bundle, "cpu-fp32", CONTEXT) == f"{answer}\n"
    made = (tmp_path / "b" / "manifest.json").stat().st_mtime_ns
    assert said("quickstart_modelscope", str(checkpoint_of()), bundle, "cpu-fp32", CONTEXT) == f"{answer}\n"
    assert (tmp_path / "b" / "manifest.json").stat().st_mtime_ns == made
    assert said("quickstart_transformers", bundle) == f"{answer}\n"
    assert said("quickstart_vllm", bundle) == f"> {chicken}\n{answer}\n\n> {moons}\n{second}\n\n"


CALL = '<|function_start|>{"name": "googleWebSearch", "arguments": {"query": "万神殿 builder"}}<|function_end|>'


class FakeWeb:
    """A model that searches twice and then answers, and the web it searches."""

    def __init__(self) -> None:
        self.asked: list[list[dict[str, str]]] = []
        self.queries: list[str] = []

    def ask(self, messages: list[dict[str, str]]) -> str:
        self.asked.append(list(messages))
        return CALL if len(self.asked) < 3 else "Hadrian [citation:3], not Agrippa [citation:1][citation:9]."

    def search(self, query: str) -> list[dict[str, str]]:
        self.queries.append(query)
        at = len(self.queries)
        return [{"title": f"T{at}{part}", "url": f"http://{at}/{part}", "summary": f"S{at}{part}"} for part in "ab"]


def test_a_web_search_is_the_cards_loop():
    web, functions = FakeWeb(), script("websearch")
    text, results = functions["answer"](web.ask, web.search, "Who built the Pantheon?")
    assert text.startswith("Hadrian") and web.queries == ["万神殿 builder"] * 2
    system, question, *rest = web.asked[-1]
    opening = "You have access to the following functions. Use them if required -\n[\n    {\n"
    assert system["content"].startswith(opening)
    assert '"name": "googleWebSearch"' in system["content"] and question["content"] == "Who built the Pantheon?"
    assert rest == [
        {"role": "assistant", "content": CALL},
        {"role": "observation", "content": "[[citation:1]]\nS1a\n\n[[citation:2]]\nS1b"},
        {"role": "assistant", "content": CALL},
        {"role": "observation", "content": "[[citation:3]]\nS2a\n\n[[citation:4]]\nS2b"},
    ]
    assert functions["cited"](text, results) == ["[1] T1a http://1/a", "[3] T2a http://2/a"]


@pytest.mark.parametrize("text", ["No call.", "<|function_start|>no JSON<|function_end|>", CALL.replace("query", "q")])
def test_what_is_no_search_is_the_answer(text):
    answered = script("websearch")["answer"](lambda messages: text, lambda query: pytest.fail(query), "?")
    assert answered == (text, [])


def test_the_search_over_a_folder_from_the_command_line(make_model, tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("Nothing here.\n\nThe builder was Hadrian.\n\nA builder.")
    (found,) = script("websearch")["folder_search"](tmp_path / "docs", most=1)("Hadrian builder?")
    assert (found["title"], found["summary"]) == ("a.txt", "The builder was Hadrian.")
    functions = script("websearch")
    space = functions["main"].__globals__
    monkeypatch.setitem(space, "Model", make_model("Read it [citation:1]."))
    monkeypatch.setattr(sys, "argv", ["websearch.py", "bundle", "Who?", "--folder", str(tmp_path / "docs")])
    functions["main"]()
    assert capsys.readouterr().out == "Read it [citation:1].\n"


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[[str], Any]:
    """A class whose `open` gives a Model that answers everything with the given text."""
    from tests.runtime.conftest import (
        MEGREZ_TEMPLATE,
        ScriptedSession,
        byte_level_tokenizer,
        plain_manifest,
        write_bundle,
    )

    def make(answer: str) -> Any:
        folder = tmp_path / "scripted"
        write_bundle(folder, manifest=plain_manifest(), tokenizer=byte_level_tokenizer(), template=MEGREZ_TEMPLATE)
        bundle = open_bundle(folder)
        text = Text.open(bundle)
        session = ScriptedSession([*text.encode(answer), 264], capacity=2000)
        model = Model(bundle=bundle, session=session, text=text, template=ChatTemplate.open(bundle, text))

        class Opened:
            @staticmethod
            def open(path: str) -> Model:
                return model

        return Opened

    return make
