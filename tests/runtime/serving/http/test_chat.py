"""/v1/chat/completions by OpenAI's own client, against the sum rule."""

import asyncio

import pytest

from tests.runtime.serving.http.clients import openai_async_client, openai_client
from tests.runtime.serving.http.servers import Gated, alone, spoken, wait_until
from tests.runtime.serving.http.test_completions import LIKELY

USER = [{"role": "user", "content": "hi"}]
TURN = "<|role_start|>{}<|role_end|>{}<|turn_end|>"
OPENING = "你是Megrez-3B-Instruct，将针对用户的问题给出详细的、积极的回答。"
PROMPT = TURN.format("system", OPENING) + TURN.format("user", "hi") + "<|role_start|>assistant<|role_end|>"


@pytest.fixture(scope="module")
def client(server):
    with openai_client(server) as client:
        yield client


@pytest.fixture
def ids(byte_level):
    return byte_level.encode(PROMPT).ids


def test_an_answer(client, byte_level, ids):
    found = client.chat.completions.create(
        model="tiny", messages=USER, max_tokens=1, max_completion_tokens=5, response_format={"type": "text"}
    )
    (choice,) = found.choices
    expected = alone(ids, 5)
    assert (choice.message.role, choice.message.content) == ("assistant", spoken(byte_level, expected))
    assert choice.finish_reason == ("length" if len(expected) == 5 else "stop")
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(ids), len(expected))


def test_without_max_tokens_it_goes_on_to_the_end_of_the_context(client, ids):
    found = client.chat.completions.create(model="tiny", messages=USER)
    expected = alone(ids, 400 - len(ids) + 1)
    assert found.usage.completion_tokens == len(expected)


def test_parts_of_text_are_joined(client, byte_level):
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    found = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}], max_tokens=1)
    assert found.usage.prompt_tokens == len(byte_level.encode(PROMPT.replace("hi", "h\ni")).ids)


def test_logprobs_have_text_and_bytes(client, ids):
    found = client.chat.completions.create(
        model="tiny", messages=USER, max_tokens=6, logprobs=True, top_logprobs=1, extra_body={"ignore_eos": True}
    )
    content = found.choices[0].logprobs.content
    assert [one.logprob for one in content] == pytest.approx([LIKELY] * 6, abs=1e-5)
    assert all(one.top_logprobs[0].token == one.token for one in content)
    # Ids below 256 are GPT-2's alphabet in its sorted order: bytes by another way than the server's.
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    expected = [
        ord(char) if ord(char) < 256 else hidden[ord(char) - 256]
        for char in (alphabet[token] for token in alone(ids, 6, stops=()) if token < 256)
    ]
    single = [one.bytes for one, token in zip(content, alone(ids, 6, stops=()), strict=True) if token < 256]
    assert single == [[byte] for byte in expected] and len(single) > 0


def test_a_stream_of_several_choices(client, byte_level, ids):
    with client.chat.completions.create(
        model="tiny", messages=USER, max_tokens=6, n=3, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    expected = alone(ids, 6)
    for index in range(3):
        own = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == index]
        assert [one.delta.role for one in own] == ["assistant"] + [None] * (len(own) - 1)
        assert "".join(one.delta.content or "" for one in own) == spoken(byte_level, expected)
        assert [one.finish_reason for one in own if one.finish_reason] == ["length" if len(expected) == 6 else "stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 3 * len(expected)


def test_a_stream_that_is_closed_ends_its_request(start):
    server = start(Gated, slots=1)

    async def read_one():
        async with openai_async_client(server) as client:
            server.llm.session.allow(3)
            stream = await client.chat.completions.create(
                model="tiny", messages=USER, stream=True, extra_body={"ignore_eos": True}
            )
            await anext(aiter(stream))
            await stream.close()

    asyncio.run(read_one())
    wait_until(lambda: server.metric('vllm:request_success_total{finished_reason="abort"') == 1)
    server.llm.session.open()
    wait_until(lambda: server.llm.load() == (0, 0, 0))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("web_search_options", {"search_context_size": "low"}),
        ("continue_final_message", True),
        ("top_logprobs", 3),
        ("max_completion_tokens", 0),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ("messages", [{"role": "user"}]),
        ("messages", []),
    ],
)
def test_what_is_not_supported_is_refused_by_name(server, field, value):
    status, found = server.post("/v1/chat/completions", {"messages": USER, field: value})
    assert status == 400
    assert found["error"]["type"] == "invalid_request_error" and field in found["error"]["param"]
    assert field in found["error"]["message"] or field == "messages"


def test_no_tools_are_no_fault(server):
    body = {"messages": USER, "tools": [], "tool_choice": "none", "max_tokens": 1}
    assert server.post("/v1/chat/completions", body)[0] == 200
