"""/v1/messages by Anthropic's own client, against the sum rule."""

import pytest

from tests.runtime.serving.http.clients import anthropic_client
from tests.runtime.serving.http.servers import alone, spoken
from tests.runtime.serving.http.test_chat import PROMPT, TURN, USER


@pytest.fixture(scope="module")
def client(server):
    with anthropic_client(server) as client:
        yield client


def ids_of(tokenizer, system):
    asked = TURN.format("system", system) + TURN.format("user", "hi") + "<|role_start|>assistant<|role_end|>"
    return tokenizer.encode(asked).ids


def test_an_answer(client, byte_level):
    system = [{"type": "text", "text": "Be brief."}]
    found = client.messages.create(model="tiny", max_tokens=4, system=system, messages=USER)
    ids = ids_of(byte_level, "Be brief.")
    expected = alone(ids, 4)
    assert [(one.type, one.text) for one in found.content] == [("text", spoken(byte_level, expected))]
    assert found.stop_reason == ("max_tokens" if len(expected) == 4 else "end_turn")
    assert found.usage.input_tokens + found.usage.cache_read_input_tokens == len(ids)
    assert found.usage.output_tokens == len(expected)


def test_tokens_are_counted_without_generating(client, byte_level):
    found = client.messages.count_tokens(model="tiny", messages=USER)
    assert found.input_tokens == len(byte_level.encode(PROMPT).ids)


def test_a_stop_sequence_is_named(client, byte_level):
    whole = spoken(byte_level, alone(byte_level.encode(PROMPT).ids, 6))
    found = client.messages.create(model="tiny", max_tokens=6, messages=USER, stop_sequences=[whole[1:3]])
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", whole[1:3])
    assert found.content[0].text == whole[: whole.index(whole[1:3])]


def test_a_stream_has_the_same_text(client, byte_level):
    ids = byte_level.encode(PROMPT).ids
    expected = alone(ids, 5)
    with client.messages.stream(model="tiny", max_tokens=5, messages=USER) as stream:
        events = [event.type for event in stream if event.type != "text"]
        final = stream.get_final_message()
    assert final.content[0].text == spoken(byte_level, expected)
    assert events[:2] == ["message_start", "content_block_start"]
    assert events[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(events[2:-3]) <= {"content_block_delta"}
    assert final.usage.output_tokens == len(expected)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"max_tokens": 0}, "BadRequestError"),
        ({"messages": []}, "BadRequestError"),
        ({"model": "other"}, "NotFoundError"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "BadRequestError"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "BadRequestError"),
    ],
)
def test_errors_have_anthropics_form(client, change, kind):
    import anthropic

    with pytest.raises(getattr(anthropic, kind)) as caught:
        client.messages.create(**({"model": "tiny", "max_tokens": 4, "messages": USER} | change))
    body = caught.value.body
    assert body["type"] == "error" and body["error"]["type"] in ("invalid_request_error", "not_found_error")
    assert next(iter(change)) in body["error"]["message"]
