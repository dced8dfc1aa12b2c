import dataclasses
import itertools
import sys
import types

import pytest

from megrez.runtime import Model, SamplingParams, engines
from megrez.runtime.bundle import open_bundle
from megrez.runtime.chat import ChatTemplate
from megrez.runtime.errors import BundleError, UsageError
from megrez.runtime.session import FakeSession
from megrez.runtime.text import Text

TURN_END, FUNCTION_START, FUNCTION_END = 264, 265, 266
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
def model_saying(make_bundle, byte_level, scripted, megrez_template):
    """A Model whose engine answers every prompt with the given text and then the turn's end."""

    def build(answer: str) -> Model:
        bundle = open_bundle(make_bundle(tokenizer=byte_level, template=megrez_template))
        text = Text.open(bundle)
        session = scripted([*text.encode(answer), TURN_END], capacity=400)
        return Model(bundle=bundle, session=session, text=text, template=ChatTemplate.open(bundle, text))

    return build


def test_an_answer_holds_its_text_ids_counts_and_timings(model_saying):
    model = model_saying("hello 你")
    completion = model.generate(USER)
    assert completion.text == "hello 你"
    assert completion.token_ids == (*model.text.encode("hello 你"), TURN_END)
    assert completion.output_tokens == len(completion.token_ids)
    assert completion.prompt_tokens == len(model.encode(USER))
    assert completion.finish_reason == "stop"
    assert completion.ttft_s > 0 and completion.decode_tokens_per_s > 0


def test_the_stream_is_the_answer_in_pieces(model_saying):
    model = model_saying("hello 你")
    pieces = list(model.stream(USER))
    assert "".join(piece.text for piece in pieces) == "hello 你"
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]


def test_a_function_call_stays_visible_and_the_stop_token_does_not(model_saying):
    call = '<|function_start|>{"name": "f"}<|function_end|>'
    completion = model_saying(call).generate(USER)
    assert completion.text == call
    assert {FUNCTION_START, FUNCTION_END} < set(completion.token_ids)


def test_a_stop_string_across_tokens_ends_the_answer_without_it(model_saying):
    completion = model_saying("one, two, three").generate(USER, stop=["o, th"])
    assert (completion.text, completion.finish_reason) == ("one, tw", "stop")


def test_text_that_only_began_like_a_stop_string_is_given_at_the_end(model_saying):
    assert model_saying("one STO").generate(USER, stop=["STOP"]).text == "one STO"


def test_max_tokens_ends_with_length_and_shows_a_half_character(model_saying):
    completion = model_saying("a你").generate(USER, max_tokens=2)
    assert (completion.text, completion.finish_reason, completion.output_tokens) == ("a\ufffd", "length", 2)


def test_one_token_has_no_decode_speed(model_saying):
    assert model_saying("abc").generate(USER, max_tokens=1).decode_tokens_per_s is None


def test_text_is_continued_and_messages_go_through_the_template(model_saying):
    model = model_saying("x")
    assert model.encode("hi") == model.text.encode("hi")
    assert model.text.decode(model.encode(USER)).endswith("<|role_start|>assistant<|role_end|>")


def test_a_templates_bos_is_not_doubled(make_bundle, byte_fallback, manifest, scripted):
    tokens = dataclasses.replace(manifest.tokens, bos=1, stop=(2,), add_bos=True)
    folder = make_bundle(
        manifest=dataclasses.replace(manifest, tokens=tokens),
        tokenizer=byte_fallback,
        template="{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
    )
    bundle = open_bundle(folder)
    text = Text.open(bundle)
    model = Model(bundle=bundle, session=scripted([2]), text=text, template=ChatTemplate.open(bundle, text))
    assert model.encode(USER).count(1) == 1
    assert model.encode("hi").count(1) == 1


def test_a_template_that_writes_no_bos_gets_none_as_in_transformers(make_bundle, byte_fallback, manifest, scripted):
    tokens = dataclasses.replace(manifest.tokens, bos=1, stop=(2,), add_bos=True)
    manifest = dataclasses.replace(manifest, tokens=tokens)
    bundle = open_bundle(make_bundle(manifest=manifest, tokenizer=byte_fallback, template="{{ messages[0].content }}"))
    text = Text.open(bundle)
    model = Model(bundle=bundle, session=scripted([2]), text=text, template=ChatTemplate.open(bundle, text))
    assert 1 not in model.encode(USER)


def test_a_base_model_refuses_messages(make_bundle, byte_level, scripted):
    bundle = open_bundle(make_bundle(tokenizer=byte_level))
    model = Model(bundle=bundle, session=scripted([1]), text=Text.open(bundle), template=None)
    with pytest.raises(UsageError, match="no chat template"):
        model.generate(USER)


def test_reused_prefixes_are_fed_once_and_answers_stay_the_same(model_saying):
    model = dataclasses.replace(model_saying("x"), session=FakeSession(vocab_size=267, capacity=64))
    fed: list[int] = []
    step = model.session.step
    model.session.step = lambda tokens, *batch, **named: (fed.append(len(tokens)), step(tokens, *batch, **named))[1]

    def ids(prompt: list[int], reuse: bool) -> list[int]:
        fed.clear()
        return [piece.token for piece in model.stream_ids(prompt, max_tokens=5, reuse_prefix=reuse)]

    answer = ids([7, 8, 9], True)
    longer = [7, 8, 9, *answer[:-1], 30]
    fresh = ids(longer, False)
    ids([7, 8, 9], False)
    assert ids(longer, True) == fresh
    assert fed[0] == 1
    assert ids(longer, True) == fresh and fed[0] == 1
    assert ids([7, 1], True) == ids([7, 1], False)


def test_an_interrupted_stream_does_not_spoil_the_next(model_saying):
    model = dataclasses.replace(model_saying("x"), session=FakeSession(vocab_size=267, capacity=64))
    for taken in range(4):
        list(itertools.islice(model.stream_ids([5, 6, 7], max_tokens=8, reuse_prefix=True), taken))
        said = [piece.token for piece in model.stream_ids([5, 6, 7, 24], max_tokens=4, reuse_prefix=True)]
        context = [5, 6, 7, 24]
        for _ in range(4):
            context.append(sum(context) % 267)
        assert said == context[4 : 4 + len(said)]


def test_a_closed_model_says_so_and_may_be_closed_again(model_saying):
    with model_saying("hello") as model:
        model.close()
    with pytest.raises(UsageError, match="was closed: open it again"):
        model.generate(USER)


def test_a_stream_ends_in_an_error_once_another_is_asked_for(model_saying):
    model = dataclasses.replace(model_saying("x"), session=FakeSession(vocab_size=267, capacity=64))
    list(model.stream_ids([5, 6, 7], max_tokens=4))
    unread = model.stream_ids([5, 6, 8], max_tokens=4, reuse_prefix=True)
    begun = model.stream_ids([5, 6, 9], max_tokens=4, reuse_prefix=True)
    assert next(begun).token == 20
    last = [piece.token for piece in model.stream_ids([5, 6, 7, 9], max_tokens=3, reuse_prefix=True)]
    assert last == [27, 54, 108]
    for older in (unread, begun):
        with pytest.raises(UsageError, match="another answer was asked of this model since"):
            next(older)


def test_the_manifests_sampling_is_the_default_and_yields_to_the_callers(make_bundle, byte_level, manifest, scripted):
    sampling = dataclasses.replace(manifest.sampling, temperature=0.7, top_p=0.9, repetition_penalty=1.02)
    bundle = open_bundle(make_bundle(manifest=dataclasses.replace(manifest, sampling=sampling), tokenizer=byte_level))
    model = Model(bundle=bundle, session=scripted([1]), text=Text.open(bundle), template=None)
    assert model.sampling == SamplingParams(temperature=0.7, top_p=0.9, repetition_penalty=1.02)


@pytest.fixture
def fake_engine(monkeypatch):
    """The engine "fake", whose module notes how it was opened."""
    module = types.ModuleType("fake_engine_of_test_model")
    module.opened = []

    def open_session(bundle, *, threads, slots=1, capacity=None):
        module.opened.append((bundle.path, threads, slots, capacity))
        return FakeSession(vocab_size=267)

    module.open_session = open_session
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(engines.MODULES, "fake", module.__name__)
    return module


def test_open_finds_the_engine_by_the_manifests_name(make_bundle, byte_level, fake_engine):
    folder = make_bundle(tokenizer=byte_level)
    with Model.open(folder, threads=3) as model:
        assert model.template is None
        assert model.generate("hello", max_tokens=2).output_tokens == 2
    assert fake_engine.opened == [(folder, 3, 1, None)]
    assert model.session.cache.shape[1] == 0


def test_slots_and_capacity_are_the_engines(make_bundle, byte_level, fake_engine):
    folder = make_bundle(tokenizer=byte_level)
    Model.open(folder, threads=1, slots=4, capacity=32).close()
    assert fake_engine.opened == [(folder, 1, 4, 32)]


def test_an_unknown_engine_is_refused_with_those_known(make_bundle, byte_level):
    with pytest.raises(BundleError, match=r"engine 'fake', this version has ort"):
        Model.open(make_bundle(tokenizer=byte_level))


def test_open_verifies_hashes_when_asked(make_bundle, byte_level, fake_engine):
    folder = make_bundle(tokenizer=byte_level)
    (folder / "model.onnx").write_text("Weights")
    Model.open(folder).close()
    with pytest.raises(BundleError, match="SHA-256"):
        Model.open(folder, verify=True)
