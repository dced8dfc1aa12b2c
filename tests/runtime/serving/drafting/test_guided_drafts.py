"""Drafts within a grammar: forbidden tokens are cut, and the answer is the one without drafts."""

from typing import Any

import numpy as np
import pytest

from megrez.runtime.guided import Guided
from megrez.runtime.serving.drafting.lookup import PromptLookup
from megrez.runtime.serving.engine import Engine
from megrez.runtime.serving.guided import GuidedCompiler
from megrez.runtime.text import Detokenizer, Text
from tests.runtime.conftest import byte_level_tokenizer, plain_manifest
from tests.runtime.serving.drafting.speculating import Client, Fixed, Repetitive, always, drain

pytest.importorskip("llguidance")

VOCAB, STOPS = 267, (264, 261)
TOKENIZER = byte_level_tokenizer()
GUIDED = {
    "schema": Guided(
        json_schema={
            "type": "array",
            "items": {"type": "object", "properties": {"name": {"enum": ["ada", "bob"]}}, "required": ["name"]},
            "minItems": 3,
            "maxItems": 5,
        }
    ),
    "regex": Guided(regex="(ab|cd){4,30}"),
    "choice": Guided(choice=("hello hello hello", "world")),
}


@pytest.fixture(scope="module")
def compiler() -> Any:
    one = GuidedCompiler(TOKENIZER.to_str(), vocab_size=VOCAB, stop_ids=STOPS)
    yield one
    one.close()


def answer(speculation: Any, grammar: Any, guided: Guided, **params: Any) -> tuple[list[Any], list[int], str]:
    text = Text(TOKENIZER, plain_manifest().tokens)
    session = Repetitive(slots=2, capacity=300, vocab_size=VOCAB)
    engine = Engine(
        session, stop_ids=STOPS, detokenizer=lambda prompt: Detokenizer(text, prompt), speculation=speculation
    )
    client = Client(engine, [1, 2], grammar=grammar, guided=guided, max_tokens=120, **params)
    drain(engine)
    shown = "".join(one.text for one in client.heard if one.index == 0)  # type: ignore[union-attr]
    return client.story, session.rows, shown


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "seed": 5}, {"min_tokens": 9, "logprobs": 1}])
def test_guided_answers_are_the_same_with_drafts(compiler: GuidedCompiler, name: str, params: dict[str, Any]) -> None:
    guided = GUIDED[name]
    grammar = compiler.compile(guided)
    params = {"n": 2, **params}
    plain, steps, shown = answer(None, grammar, guided, **params)
    found, _, _ = answer(always(PromptLookup()), grammar, guided, **params)
    assert found == plain and shown
    told = [[token for token, *_ in own] for own in plain]
    by_prompt = Fixed(lambda ids: next((own[len(ids) - 2 :] for own in told if ids[2:] == own[: len(ids) - 2]), []))
    found, fewer, _ = answer(always(by_prompt), grammar, guided, **params)
    assert found == plain and len(fewer) < max(0.6 * len(steps), 4)


def test_the_draft_is_cut_at_the_first_token_that_the_grammar_forbids(compiler: GuidedCompiler) -> None:
    grammar = compiler.compile(GUIDED["regex"])
    a, b, c = (TOKENIZER.token_to_id(one) for one in "abc")
    drafter = Fixed(lambda ids: [a, b, c, c, a, b])
    _, rows, _ = answer(always(drafter), grammar, GUIDED["regex"], logit_bias={a: 100.0})
    assert max(rows[1:]) == 4  # the pending token and "abc"


def test_a_matcher_counts_what_it_would_accept_and_stays_where_it_is(compiler: GuidedCompiler) -> None:
    matcher = compiler.compile(GUIDED["regex"]).matcher()
    a, b, c = (TOKENIZER.token_to_id(one) for one in "abc")
    before = matcher.allowed().copy()
    assert matcher.accepts([a, b, a, b]) == 4
    assert matcher.accepts([a, b, b, a]) == 2
    assert matcher.accepts([b]) == 0 == matcher.accepts([])
    assert matcher.accepts([a, VOCAB + 5, b]) == 1  # an id that the tokenizer does not have
    assert np.array_equal(matcher.allowed(), before)
    matcher.push(a)
    assert matcher.accepts([b, c]) == 2
