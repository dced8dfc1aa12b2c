"""Text, requests and their pieces, in this process: the engine's next token is the sum of the context."""

import ctypes
import json
import sys
import threading

import numpy as np
import pytest
from tokenizers import Tokenizer

from megrez.runtime.chat import ChatTemplate
from megrez.runtime.logprobs import top_logprobs
from tests.runtime.capi.driver import ARGUMENTS, CALL, CANCELLED, END, OK, TEXT, TIMEOUT, Failed, Stats
from tests.runtime.capi.sums import STOPS, VOCAB, alone, encode, spoken
from tests.runtime.conftest import MEGREZ_TEMPLATE, byte_level_tokenizer

STOP, LENGTH, CALLS = 1, 2, 3
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_level_tokenizer()


def request(**options):
    return json.dumps(options).encode()


def biased(tokenizer, text):
    """Options under which FakeSession's model says only the one token of `text`."""
    (token,) = encode(tokenizer, text)
    return {"logit_bias": {str(token): 100}}


def test_the_version_needs_no_model(api):
    assert api.lib.megrez_abi_version() == 1
    assert api.lib.megrez_version() == b"0.0.test"


def test_text_to_tokens_and_back(api, model, tokenizer):
    for text in ("hello world", "", "héllo 你好 🙂", "<|turn_end|>"):
        ids = api.tokenize(model, text.encode())
        assert ids == encode(tokenizer, text)
        assert api.detokenize(model, ids) == text.encode()


def test_text_of_no_model_is_quoted_as_json(api):
    text = 'say "hi"\n\\ 你好 \x01'
    assert json.loads(api.text("json_quote", text.encode())) == text


def test_a_rendered_chat_is_the_templates(api, model):
    found = api.text("render_chat", model, request_of(USER), None)
    assert found == ChatTemplate(MEGREZ_TEMPLATE).render(USER)


def request_of(messages):
    return json.dumps(messages).encode()


def test_a_prompt_is_continued_piece_by_piece(api, model, tokenizer):
    pieces = []
    status, text = api.generate(model, "hello ünter".encode(), request(max_tokens=9), pieces.append)
    ids = alone(encode(tokenizer, "hello ünter"), 9)
    assert (status, text) == (OK, spoken(tokenizer, ids))
    assert [token for piece in pieces for token in piece["ids"]] == ids
    assert "".join(piece["text"] for piece in pieces) == text
    finish = STOP if ids[-1] in STOPS else LENGTH
    assert [piece["finish"] for piece in pieces] == [0] * (len(ids) - 1) + [finish]
    assert {(piece["kind"], piece["index"], piece["call"], piece["logprobs"]) for piece in pieces} == {
        (TEXT, 0, -1, None)
    }


def test_a_chat_is_answered_after_its_template(api, model, tokenizer):
    pieces = []
    status, text = api.generate(model, request_of(USER), request(max_tokens=5), pieces.append, chat=True)
    ids = alone(encode(tokenizer, ChatTemplate(MEGREZ_TEMPLATE).render(USER)), 5)
    assert (status, text) == (OK, spoken(tokenizer, ids))
    assert [token for piece in pieces for token in piece["ids"]] == ids


def test_prompts_and_messages_may_stand_in_the_request(api, model, tokenizer):
    ids = [3, 4, 5]
    found = [api.drain(api.submit(model, None, request(prompt=one, max_tokens=3)))[0] for one in (ids, "hello w")]
    assert [[token for piece in pieces for token in piece["ids"]] for pieces in found] == [
        alone(ids, 3),
        alone(encode(tokenizer, "hello w"), 3),
    ]
    chat, _ = api.drain(api.submit(model, None, request(messages=USER, max_tokens=2), chat=True))
    rendered = encode(tokenizer, ChatTemplate(MEGREZ_TEMPLATE).render(USER))
    assert [token for piece in chat for token in piece["ids"]] == alone(rendered, 2)


def test_several_answers_of_one_request(api, model, tokenizer):
    pieces, status = api.drain(api.submit(model, b"hello", request(n=2, max_tokens=4)))
    ids = alone(encode(tokenizer, "hello"), 4)
    assert status == END
    for index in (0, 1):
        own = [piece for piece in pieces if piece["index"] == index]
        assert [token for piece in own for token in piece["ids"]] == ids
        assert own[-1]["finish"]
    _, text = api.generate(model, b"hello", request(n=2, max_tokens=4))
    assert text == spoken(tokenizer, ids)


def test_seeds_draw_as_the_python_api_does(api, model, bundles, engines):
    from megrez.runtime import LLM, SamplingParams

    with LLM(bundles["fake"]) as llm:
        (found,) = llm.generate("hello", SamplingParams(temperature=1.5, seed=7, max_tokens=20))
    _, text = api.generate(model, b"hello", request(temperature=1.5, seed=7, max_tokens=20))
    assert text == found.outputs[0].text


def test_stop_strings_end_an_answer(api, model, tokenizer):
    options = {**biased(tokenizer, "w"), "max_tokens": 9, "stop": "www"}
    pieces, status = api.drain(api.submit(model, b"hello", request(**options)))
    assert (status, "".join(piece["text"] for piece in pieces), pieces[-1]["finish"]) == (END, "", STOP)


def test_log_probabilities_are_of_the_logits(api, model, tokenizer):
    options = {"logprobs": True, "top_logprobs": 2, "max_tokens": 2}
    ids = encode(tokenizer, "hello")
    pieces, _ = api.drain(api.submit(model, b"hello", request(**options)))
    for piece in pieces:
        logits = np.zeros(VOCAB, np.float32)
        logits[sum(ids) % VOCAB] = 1
        (entry,) = json.loads(piece["logprobs"])
        expected = top_logprobs(logits, piece["ids"][0], 2)
        assert entry["logprob"] == pytest.approx(expected.logprob)
        assert len(entry["top_logprobs"]) == 2
        ids += piece["ids"]


def test_polling_waits_no_longer_than_asked(api, open_model):
    model = open_model("slow")
    handle = api.submit(model, b"hello", request(max_tokens=300, ignore_eos=True))
    assert api.poll(handle, 0) == TIMEOUT  # a step takes 2 ms
    assert isinstance(api.poll(handle, 60_000), dict)
    api.do("request_free", handle)


def test_waiting_finds_the_request_that_is_ready_for_longest(api, open_model):
    model = open_model("slow", slots=1)
    handles = [api.submit(model, b"hello", request(max_tokens=3, ignore_eos=True)) for _ in range(2)]
    assert api.wait(handles) == 0
    while not isinstance(api.poll(handles[0]), int):
        pass
    # Complete requests stay ready; without the first one, the second is waited for.
    assert api.wait(handles[1:]) == 0
    assert isinstance(api.poll(handles[1], 0), dict)
    assert api.wait(handles, 0) == 0
    waiting = api.submit(model, b"hello", request(max_tokens=300, ignore_eos=True))
    api.drain(handles[1])
    behind = api.submit(model, b"hello", request(max_tokens=3))
    assert api.wait([behind], 1) is None
    for handle in (*handles, waiting, behind):
        api.do("request_free", handle)


def test_waiting_wakes_for_a_request_that_another_thread_cancels(api, open_model):
    model = open_model("slow", slots=1)
    first = api.submit(model, b"hello", request(max_tokens=900, ignore_eos=True))
    second = api.submit(model, b"hello", request(max_tokens=9))
    canceller = threading.Timer(0.02, lambda: api.do("cancel", second))
    canceller.start()
    assert api.wait([second], 60_000) == 0
    assert api.poll(second) == CANCELLED
    canceller.join()
    api.do("request_free", first)


def test_a_cancelled_request_frees_its_slot(api, open_model, tokenizer):
    model = open_model("slow", slots=1)
    first = api.submit(model, b"hello", request(max_tokens=900, ignore_eos=True))
    assert isinstance(api.poll(first), dict)
    api.do("cancel", first)
    assert [api.poll(first), api.poll(first, 0)] == [CANCELLED, CANCELLED]
    _, text = api.generate(model, b"hello", request(max_tokens=3))
    assert text == spoken(tokenizer, alone(encode(tokenizer, "hello"), 3))


def test_cancelling_a_complete_request_keeps_its_pieces(api, model, tokenizer):
    handle = api.submit(model, b"hello", request(max_tokens=3))
    while api.stats(model).running or api.stats(model).waiting or not api.usage(handle)[2]:
        pass
    api.do("cancel", handle)
    pieces, status = api.drain(handle)
    assert [token for piece in pieces for token in piece["ids"]] == alone(encode(tokenizer, "hello"), 3)
    assert status == END


def test_a_callback_stops_its_request(api, model, tokenizer):
    seen = []

    def stop_at_two(piece):
        seen.append(piece)
        return len(seen) == 2

    status, text = api.generate(model, b"hello", request(max_tokens=9, ignore_eos=True), stop_at_two)
    assert (status, len(seen)) == (CANCELLED, 2)
    assert text == "".join(piece["text"] for piece in seen)


def test_a_callback_may_call_every_function(api, model, tokenizer):
    found = []

    def nested(piece):
        if not found:
            found.append(api.tokenize(model, b"hello"))
            found.append(api.generate(model, b"hello", request(max_tokens=3)))
            found.append(api.stats(model).running)

    status, _ = api.generate(model, b"hello", request(max_tokens=3, ignore_eos=True), nested)
    ids = encode(tokenizer, "hello")
    assert (status, found[:2]) == (OK, [ids, (OK, spoken(tokenizer, alone(ids, 3)))])


def test_usage_and_statistics_count_tokens(api, model, tokenizer):
    ids = encode(tokenizer, "hello world, hello world")
    for cached in (0, len(ids) - 1):
        handle = api.submit(model, b"hello world, hello world", request(max_tokens=4, ignore_eos=True))
        api.drain(handle)
        assert api.usage(handle) == (len(ids), cached, 4)
        api.do("request_free", handle)
    stats = api.stats(model)
    assert (stats.requests, stats.prompt_tokens, stats.output_tokens) == (2, 2 * len(ids), 8)
    assert (stats.running, stats.waiting, stats.cached_tokens) == (0, 0, 0)


def test_a_struct_of_an_older_header_is_not_written_beyond_its_end(api, model):
    stats = Stats(size=ctypes.sizeof(ctypes.c_size_t) + 8, waiting=-1, requests=-1)
    api.do("model_stats", model, ctypes.byref(stats))
    assert (stats.running, stats.waiting, stats.requests) == (0, -1, -1)


def test_the_model_says_what_it_is(api, open_model, bundles):
    info = json.loads(api.text("model_info", open_model(slots=3, context=100)))
    assert info["bundle"] == str(bundles["fake"])
    assert (info["slots"], info["context"], info["vocab_size"], info["stop_ids"]) == (3, 100, VOCAB, list(STOPS))
    assert (info["has_chat_template"], info["tool_format"]) == (True, "megrez")


def test_guided_answers_match_what_they_are_held_to(api, model):
    held = {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["yes", "no"]}}}}
    found = [
        api.generate(model, request_of(USER), request(max_tokens=40, **held), chat=True)[1],
        api.generate(model, b"hello", request(max_tokens=40, guided_choice=["red", "blue"]))[1],
        api.generate(model, b"hello", request(max_tokens=40, guided_regex="[0-9]{3}"))[1],
    ]
    assert json.loads(found[0]) in ("yes", "no")
    assert found[1] in ("red", "blue")
    assert len(found[2]) == 3 and found[2].isdigit()


def test_tool_calls_come_as_pieces_of_their_own(api, model):
    parameters = {"type": "object", "properties": {"on": {"enum": ["a"]}}, "required": ["on"]}
    parameters["additionalProperties"] = False
    tools = [{"type": "function", "function": {"name": "lamp", "parameters": parameters}}]
    chosen = {"type": "function", "function": {"name": "lamp"}}
    options = request(max_tokens=300, tools=tools, tool_choice=chosen)
    pieces, status = api.drain(api.submit(model, request_of(USER), options, chat=True))
    assert status == END
    assert [(piece["text"], piece["call"]) for piece in pieces if piece["kind"] == CALL] == [("lamp", 0)]
    arguments = "".join(piece["text"] for piece in pieces if piece["kind"] == ARGUMENTS)
    assert json.loads(arguments) == {"on": "a"}
    assert "".join(piece["text"] for piece in pieces if piece["kind"] == TEXT) == ""
    assert pieces[-1]["finish"] == CALLS
    _, text = api.generate(model, request_of(USER), options, chat=True)
    assert text == ""


def test_a_full_queue_is_told(api, open_model):
    model = open_model("slow", slots=1, queue_limit=1)
    handles = [api.submit(model, b"hello", request(max_tokens=900, ignore_eos=True))]
    assert isinstance(api.poll(handles[0]), dict)
    handles.append(api.submit(model, b"hello"))
    with pytest.raises(Failed, match="the queue is full") as caught:
        api.submit(model, b"hello")
    assert caught.value.status == -6
    for handle in handles:
        api.do("request_free", handle)


def test_a_failing_engine_ends_its_request_with_the_error(api, open_model):
    handle = api.submit(open_model("failing"), b"hello", request(max_tokens=9, ignore_eos=True))
    assert isinstance(api.poll(handle), dict)
    for _ in range(2):
        with pytest.raises(Failed, match="the engine failed: try another one") as caught:
            api.poll(handle)
        assert caught.value.status == -4


def test_nothing_is_kept_of_what_was_freed(api, model):
    host = sys.modules["megrez.runtime.capi.host"]
    before = len(host.HANDLES)
    for _ in range(3):
        handle = api.submit(model, b"hello", request(max_tokens=2))
        api.drain(handle)
        api.do("request_free", handle)
    api.generate(model, b"hello", request(max_tokens=2))
    api.do("options_free", api.options())
    assert len(host.HANDLES) == before
