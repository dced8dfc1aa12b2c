"""Options to a Speculation; draft models with another tokenizer are refused."""

import dataclasses
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from megrez.runtime import LLM, Model, SamplingParams, engines
from megrez.runtime.bundle import open_bundle
from megrez.runtime.errors import BundleError, UsageError
from megrez.runtime.manifest import Manifest
from megrez.runtime.session import FakeSession
from megrez.runtime.text import Text
from tests.runtime.conftest import byte_level_tokenizer

opened: list["Noted"] = []


class Noted(FakeSession):
    def __init__(self, **shape: int) -> None:
        super().__init__(**shape)
        self.is_closed = False
        opened.append(self)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture(autouse=True)
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def open_session(bundle: Any, *, threads: int | None, slots: int = 1, capacity: int | None = None) -> FakeSession:
        vocab_size = bundle.manifest.architecture.vocab_size
        return Noted(vocab_size=vocab_size, capacity=capacity or bundle.manifest.context_length, slots=slots)

    module = types.ModuleType("fake_engine_of_test_choose")
    module.open_session = open_session  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(engines.MODULES, "fake", module.__name__)
    opened.clear()
    yield


def alone(prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(sum(ids) % 267)
    return ids[len(prompt) :]


@pytest.mark.parametrize("mode", ["auto", "always", "off"])
def test_modes_change_no_answer(make_bundle: Callable[..., Path], byte_level: Tokenizer, mode: Any) -> None:
    prompt = [7, 8, 9, 7, 8, 9, 7]
    with Model.open(make_bundle(tokenizer=byte_level), speculate=mode) as model:
        pieces = list(model.stream_ids(prompt, SamplingParams(ignore_eos=True), max_tokens=40))
    assert [one.token for one in pieces] == alone(prompt, 40)
    assert mode == "auto" or (pieces[-1].drafted_tokens > 0) == (mode == "always")
    assert all(one.is_closed for one in opened)


def test_a_draft_model_has_a_session_of_its_own_with_as_many_slots(
    make_bundle: Callable[..., Path], byte_level: Tokenizer, manifest: Manifest
) -> None:
    large = make_bundle("large", tokenizer=byte_level)
    small = make_bundle("small", tokenizer=byte_level, manifest=dataclasses.replace(manifest, context_length=48))
    with LLM(large, slots=3, context=60, speculate="always", draft=small) as llm:
        found = llm.generate([[1, 2]], SamplingParams(max_tokens=40, ignore_eos=True))
        totals = llm.speculation
    assert list(found[0].outputs[0].token_ids) == alone([1, 2], 40)
    assert totals is not None and totals.accepted == totals.drafted > 30  # of the same rule
    assert [(one.slots, one.capacity, one.is_closed) for one in opened] == [(3, 60, True), (3, 48, True)]


def test_a_draft_model_with_another_tokenizer_is_refused(
    make_bundle: Callable[..., Path], byte_level: Tokenizer, byte_fallback: Tokenizer
) -> None:
    large, other = make_bundle("large", tokenizer=byte_level), make_bundle("other", tokenizer=byte_fallback)
    said = rf"the draft model {other} has another tokenizer: token 0 is '<unk>' there, '!' here: give a smaller model"
    with pytest.raises(UsageError, match=said):
        Model.open(large, draft=other)
    extended = byte_level_tokenizer()
    extended.add_special_tokens([AddedToken("<|think|>", special=True)])
    more = make_bundle("more", tokenizer=extended)
    with pytest.raises(UsageError, match=r"token 267 is '<\|think\|>' there, missing here"):
        LLM(large, draft=more)
    assert opened and all(one.is_closed for one in opened)


def test_what_is_no_mode_and_no_bundle_is_refused(make_bundle: Callable[..., Path], byte_level: Tokenizer) -> None:
    bundle = make_bundle(tokenizer=byte_level)
    with pytest.raises(UsageError, match="speculate is 'on': give one of auto, always, off"):
        Model.open(bundle, speculate="on")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a draft model needs speculation, which is off"):
        Model.open(bundle, speculate="off", draft=bundle)
    with pytest.raises(BundleError, match="there is no bundle at"):
        Model.open(bundle, draft=bundle / "missing")
    assert all(one.is_closed for one in opened)


def test_vocabulary_lists_added_tokens(make_bundle: Callable[..., Path], byte_level: Tokenizer) -> None:
    vocabulary = Text.open(open_bundle(make_bundle(tokenizer=byte_level))).vocabulary()
    assert len(vocabulary) == 267 and vocabulary["<|eos|>"] == 261 and vocabulary["!"] == 0
