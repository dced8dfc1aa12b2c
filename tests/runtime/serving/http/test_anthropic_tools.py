"""Tools by Anthropic's own client, over a model that says what the last message says."""

import asyncio
import json

import pytest

from tests.runtime.serving.http.clients import anthropic_async_client, anthropic_client
from tests.runtime.serving.http.servers import Running, says
from tests.runtime.serving.http.test_tool_calls import CITY, ROME, TWO, call

TOOLS = [
    {"name": "weather", "description": "Sky", "input_schema": CITY, "cache_control": {"type": "ephemeral"}},
    {"name": "clock", "input_schema": {"type": "object", "properties": {}}},
]
NO_CITY = call("weather", "{city: Rome}")


@pytest.fixture(scope="module")
def client(echo: Running):
    with anthropic_client(echo) as client:
        yield client


def ask(client, text: str, **fields):
    fields = {"model": "tiny", "messages": says(text), "tools": TOOLS, "max_tokens": 200} | fields
    return client.messages.create(**fields)


def shown(message) -> list[object]:
    return [one.text if one.type == "text" else (one.name, one.input) for one in message.content]


def test_a_call_and_text_beside_it(client):
    found = ask(client, f"Let me see. {TWO}")
    assert shown(found) == ["Let me see.", ("weather", {"city": "Rome"}), ("clock", {})]
    ids = [one.id for one in found.content[1:]]
    assert len(set(ids)) == 2 and all(one.startswith("toolu_") for one in ids)
    assert (found.stop_reason, found.stop_sequence) == ("tool_use", None)
    plain = ask(client, "It rains.")
    assert (shown(plain), plain.stop_reason) == (["It rains."], "end_turn")


def test_events_of_a_stream(client):
    stream = client.messages.create(
        model="tiny", max_tokens=200, messages=says(f"Wait. {TWO}"), tools=TOOLS, stream=True
    )
    events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    starts = [event for event in events if event.type == "content_block_start"]
    assert [event.index for event in starts] == [0, 1, 2]
    assert [event.content_block.type for event in starts] == ["text", "tool_use", "tool_use"]
    assert [event.content_block.name for event in starts[1:]] == ["weather", "clock"]
    pieces = [event for event in events if event.type == "content_block_delta" and event.index == 1]
    assert {event.delta.type for event in pieces} == {"input_json_delta"} and len(pieces) > 3
    assert json.loads("".join(event.delta.partial_json for event in pieces)) == {"city": "Rome"}
    open_block = None
    for event in events:
        if event.type == "content_block_start":
            assert open_block is None
            open_block = event.index
        elif event.type.startswith("content_block"):
            assert event.index == open_block
            open_block = None if event.type == "content_block_stop" else open_block
    assert events[-2].delta.stop_reason == "tool_use"


def test_the_clients_own_accumulation_of_a_stream(echo):
    async def read():
        async with (
            anthropic_async_client(echo) as client,
            client.messages.stream(model="tiny", max_tokens=200, messages=says(TWO), tools=TOOLS) as stream,
        ):
            return await stream.get_final_message()

    assert shown(asyncio.run(read())) == [("weather", {"city": "Rome"}), ("clock", {})]


def test_choices_of_tools(client):
    assert ask(client, "It rains.", tool_choice={"type": "any"}).stop_reason == "tool_use"
    named = ask(client, "It rains.", tool_choice={"type": "tool", "name": "weather"})
    assert [name for name, _ in shown(named)] == ["weather"] and named.content[0].input["city"] in ("Rome", "Oslo")
    assert shown(ask(client, ROME, tool_choice={"type": "none"})) == [ROME]
    single = ask(client, TWO, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert [one for one in shown(single) if isinstance(one, tuple)] == [("weather", {"city": "Rome"})]
    strict = [{**TOOLS[0], "strict": True}]
    assert shown(ask(client, call("weather", '{"city": "Rio"}'), tools=strict))[0] == ("weather", {"city": "Rome"})


def test_a_second_turn_equals_openais(client, echo, byte_level):
    uses = [{"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Rome"}}]
    results = [
        {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "Rain."}]},
        {"type": "tool_result", "tool_use_id": "2"},
        {"type": "text", "text": "So?"},
    ]
    turns = [*says("Rome?"), {"role": "assistant", "content": [{"type": "text", "text": "Hm."}, *uses]}]
    found = ask(client, "", system="Be brief.", messages=[*turns, {"role": "user", "content": results}])
    assert shown(found) == ["So?"]
    called = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    functions = [
        {"type": "function", "function": {"name": one["name"], "parameters": one["input_schema"]}} for one in TOOLS
    ]
    functions[0]["function"]["description"] = "Sky"
    same = [
        {"role": "system", "content": "Be brief."},
        *says("Rome?"),
        {"role": "assistant", "content": "Hm.", "tool_calls": [called]},
        {"role": "tool", "content": "Rain."},
        {"role": "tool", "content": ""},
        *says("So?"),
    ]
    tokens = echo.post("/tokenize", {"messages": same, "tools": functions})[1]["tokens"]
    assert found.usage.input_tokens + found.usage.cache_read_input_tokens == len(tokens)
    counted = client.messages.count_tokens(
        model="tiny", system="Be brief.", messages=[*turns, {"role": "user", "content": results}], tools=TOOLS
    )
    assert counted.input_tokens == len(tokens)
    assert counted.input_tokens > client.messages.count_tokens(model="tiny", messages=says("So?")).input_tokens


@pytest.mark.parametrize("cut", [3, 22, 38, 45])
def test_max_tokens_within_a_call_ends_cleanly(client, byte_level, cut):
    said = byte_level.decode(byte_level.encode(ROME).ids[:cut], skip_special_tokens=False)
    arguments = said.partition('"arguments": ')[2]
    assert "}" not in arguments
    found = ask(client, ROME, max_tokens=cut)
    assert found.stop_reason == "max_tokens"
    assert shown(found) == ([("weather", {"INVALID_JSON": arguments})] if '"weather"' in said else [said])
    with client.messages.stream(model="tiny", max_tokens=cut, messages=says(ROME), tools=TOOLS) as stream:
        assert stream.get_final_message().stop_reason == "max_tokens"


def test_arguments_that_are_no_json_are_handed_on(client):
    assert shown(ask(client, NO_CITY)) == [("weather", {"INVALID_JSON": "{city: Rome}"})]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "", "input_schema": {}}]}, "tools[0].name"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "tool", "name": "other"}}, "other"),
        ({"tool_choice": {"type": "often"}}, "tool_choice.type"),
        ({"tools": [], "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [{"name": "f", "input_schema": {"uniqueItems": True}, "strict": True}]}, "uniqueItems"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0].name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [{"type": "image"}]}]}]},
            "messages[0].content[0].content[0].type",
        ),
    ],
)
def test_what_is_malformed_or_not_supported_is_named(client, fields, named):
    import anthropic

    with pytest.raises(anthropic.BadRequestError) as caught:
        ask(client, "a", **fields)
    assert named in caught.value.body["error"]["message"]
