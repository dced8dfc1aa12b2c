"""Tools by OpenAI's own client, over a model that says what the last message says."""

import asyncio
import json

import pytest

from megrez.runtime.serving.http.errors import ApiError
from megrez.runtime.serving.http.tool_choice import ToolChoice, tool_constraint
from tests.runtime.serving.http.clients import openai_async_client
from tests.runtime.serving.http.servers import says

START, END = "<|function_start|>", "<|function_end|>"
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Sky", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]
NAMED = {"type": "function", "function": {"name": "weather"}}


def call(name: str, arguments: str) -> str:
    return f'{START}{{"name": "{name}", "arguments": {arguments}}}{END}'


ROME = call("weather", '{"city": "Rome"}')
TWO = ROME + call("clock", "{}")


def ask(client, text: str, **fields):
    fields = {"tools": TOOLS, "max_tokens": 200} | fields
    return client.chat.completions.create(model="tiny", messages=says(text), **fields).choices[0]


def calls_of(choice) -> list[tuple[str, str]]:
    return [(one.function.name, one.function.arguments) for one in choice.message.tool_calls or ()]


def test_a_call(client):
    choice = ask(client, ROME)
    (one,) = choice.message.tool_calls
    assert (one.type, one.function.name, one.function.arguments) == ("function", "weather", '{"city": "Rome"}')
    assert one.id.startswith("call_")
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")


def test_calls_beside_text_have_ids_of_their_own(client):
    choice = ask(client, f"Let me see. {TWO}")
    assert choice.message.content == "Let me see."
    assert calls_of(choice) == [("weather", '{"city": "Rome"}'), ("clock", "{}")]
    assert len({one.id for one in choice.message.tool_calls}) == 2


def test_an_answer_without_a_call_is_text(client):
    choice = ask(client, "It rains.", tool_choice="auto")
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ("It rains.", None, "stop")


def test_several_choices_call_each(client):
    found = client.chat.completions.create(model="tiny", messages=says(ROME), tools=TOOLS, n=3, max_tokens=200)
    assert [calls_of(one) for one in found.choices] == [[("weather", '{"city": "Rome"}')]] * 3
    assert len({one.message.tool_calls[0].id for one in found.choices}) == 3


def test_a_stream_gives_name_and_id_once_and_arguments_in_pieces(client):
    """No name in each delta, own indices, no finish reason before the end."""
    stream = client.chat.completions.create(
        model="tiny", messages=says(f"Wait. {TWO}"), tools=TOOLS, stream=True, max_tokens=200
    )
    choices = [chunk.choices[0] for chunk in stream]
    deltas = [one for choice in choices for one in choice.delta.tool_calls or ()]
    heads = [(one.index, one.type, one.function.name, one.function.arguments) for one in deltas if one.id]
    assert heads == [(0, "function", "weather", ""), (1, "function", "clock", "")]
    rest = [one for one in deltas if not one.id]
    assert {(one.type, one.function.name) for one in rest} == {(None, None)}
    pieces = [one.function.arguments for one in rest if one.index == 0]
    assert "".join(pieces) == '{"city": "Rome"}' and len(pieces) > 3
    assert "".join(one.function.arguments for one in rest if one.index == 1) == "{}"
    assert [one.index for one in deltas] == sorted(one.index for one in deltas)
    assert "".join(choice.delta.content or "" for choice in choices) == "Wait."
    assert [choice.finish_reason for choice in choices] == [None] * (len(choices) - 1) + ["tool_calls"]


def test_the_clients_own_accumulation_of_a_stream(echo):
    async def read():
        async with openai_async_client(echo) as client:
            strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
            async with client.chat.completions.stream(
                model="tiny", messages=says(f"Wait. {ROME}"), tools=[strict], max_tokens=200, n=2
            ) as stream:
                return await stream.get_final_completion()

    for choice in asyncio.run(read()).choices:
        assert choice.message.content == "Wait."
        assert choice.message.tool_calls[0].function.parsed_arguments == {"city": "Rome"}


def test_logprobs_cover_the_tokens_of_a_call_streamed_or_not(client):
    fields = {"model": "tiny", "messages": says(ROME), "tools": TOOLS, "max_tokens": 200, "logprobs": True}
    whole = client.chat.completions.create(**fields)
    content = whole.choices[0].logprobs.content
    assert "".join(one.token for one in content) == ROME + "<|turn_end|>"
    assert len(content) == whole.usage.completion_tokens
    streamed = [chunk.choices[0] for chunk in client.chat.completions.create(**fields, stream=True)]
    assert [one.token for choice in streamed if choice.logprobs for one in choice.logprobs.content] == [
        one.token for one in content
    ]


@pytest.mark.parametrize("cut", range(1, 50, 4))
def test_max_tokens_within_a_call_ends_cleanly(client, byte_level, cut):
    fields = {"model": "tiny", "messages": says(ROME), "tools": TOOLS, "max_tokens": cut}
    whole = client.chat.completions.create(**fields).choices[0]
    assert whole.finish_reason == "length"
    choices = [chunk.choices[0] for chunk in client.chat.completions.create(**fields, stream=True)]
    assert [one.finish_reason for one in choices] == [None] * (len(choices) - 1) + ["length"]
    said = byte_level.decode(byte_level.encode(ROME).ids[:cut], skip_special_tokens=False)
    deltas = [one for choice in choices for one in choice.delta.tool_calls or ()]
    if '"weather"' in said:
        arguments = said.partition('"arguments": ')[2].replace("}}", "}")
        assert calls_of(whole) == [("weather", arguments)]
        assert "".join(one.function.arguments for one in deltas) == arguments
    else:
        assert whole.message.content == "".join(choice.delta.content or "" for choice in choices) == said
        assert not deltas and not whole.message.tool_calls


def test_max_tokens_between_calls_leaves_the_first_whole(client, byte_level):
    first = len(byte_level.encode(ROME).ids)
    choice = ask(client, TWO, max_tokens=first + 3)
    assert (calls_of(choice)[0], choice.finish_reason) == (("weather", '{"city": "Rome"}'), "length")


def test_choices_of_tools(client):
    free = "It rains."
    required = ask(client, free, tool_choice="required")
    assert required.finish_reason == "tool_calls" and required.message.content is None
    assert calls_of(required)[0][0] in ("weather", "clock")
    named = ask(client, call("clock", "{}"), tool_choice=NAMED)
    ((name, arguments),) = calls_of(named)
    assert name == "weather" and json.loads(arguments)["city"] in ("Rome", "Oslo")
    none = ask(client, ROME, tool_choice="none")
    assert (none.message.content, none.message.tool_calls, none.finish_reason) == (ROME, None, "stop")


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_one_call_alone_where_several_are_not_wanted(client, choice):
    assert len(calls_of(ask(client, TWO, tool_choice=choice))) == 2
    assert len(calls_of(ask(client, TWO, tool_choice=choice, parallel_tool_calls=False))) == 1


def test_strict_functions_hold_their_arguments_and_others_are_free(client):
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    wrong = call("weather", '{"city": "Rio"}')
    assert calls_of(ask(client, wrong)) == [("weather", '{"city": "Rio"}')]
    ((_, held),) = calls_of(ask(client, wrong, tools=[strict, CLOCK]))
    assert json.loads(held) == {"city": "Rome"}
    assert ask(client, "It rains.", tools=[strict, CLOCK]).message.content == "It rains."


def test_a_form_for_answers_that_call_nothing(client):
    import openai

    form = {"type": "json_schema", "json_schema": {"name": "sky", "schema": {"enum": [{"sky": "grey"}]}}}
    assert json.loads(ask(client, "It rains.", response_format=form).message.content) == {"sky": "grey"}
    assert calls_of(ask(client, ROME, response_format=form)) == [("weather", '{"city": "Rome"}')]
    with pytest.raises(openai.BadRequestError, match="guided_regex cannot be combined with tools"):
        ask(client, "a", extra_body={"guided_regex": "a"})


def test_a_second_turn_has_calls_and_results_in_megrezs_spelling(client, echo, byte_level):
    first = ask(client, ROME).message
    messages = [
        {"role": "system", "content": "Be brief."},
        *says("Rome?"),
        first.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": [{"type": "text", "text": "It rains."}]},
    ]
    found = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS, max_tokens=40)
    assert found.choices[0].message.content == "It rains."
    prompt = byte_level.decode(
        echo.post("/tokenize", {"messages": messages, "tools": TOOLS})[1]["tokens"], skip_special_tokens=False
    )
    assert prompt.startswith("<|role_start|>system<|role_end|>Be brief.\n\nYou have access to the following functions.")
    assert '"name": "clock"' in prompt
    assert prompt.endswith(
        f"<|role_start|>assistant<|role_end|>{ROME}<|turn_end|>"
        "<|role_start|>observation<|role_end|>It rains.<|turn_end|><|role_start|>assistant<|role_end|>"
    )
    assert found.usage.prompt_tokens == len(byte_level.encode(prompt).ids)


def test_nulls_in_tools_and_beside_them_are_absent(echo):
    function = {"name": "clock", "description": None, "parameters": None, "strict": None}
    body = {"tools": [{"type": "function", "function": function}], "tool_choice": None, "parallel_tool_calls": None}
    message = {"role": "assistant", "content": None, "tool_calls": None, "name": None, "function_call": None}
    messages = [*says("a"), message | {"content": "b"}, *says(call("clock", "{}"))]
    status, found = echo.post("/v1/chat/completions", body | {"messages": messages, "max_tokens": 99})
    assert status == 200 and found["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": 3}}]}, "tools[0].function.name"),
        ({"tools": [{"function": {"name": "f", "parameters": [1]}}]}, "tools[0].function.parameters"),
        ({"tools": [{"function": {"name": "f", "strict": "yes"}}]}, "tools[0].function.strict"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": NAMED}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": "often"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": [CLOCK], "parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"messages": [{"role": "assistant", "tool_calls": 3}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "messages[0].tool_calls[0].function"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 3}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"messages": [{"role": "tool", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ],
)
def test_malformed_tools_are_refused_by_name(echo, fields, param):
    status, found = echo.post("/v1/chat/completions", {"messages": says("a"), "max_tokens": 1} | fields)
    assert (status, found["error"]["param"]) == (400, param)


@pytest.mark.parametrize("how", [{"tool_choice": "required"}, {"strict": True}], ids=["required", "strict"])
def test_a_function_whose_schema_cannot_be_enforced_is_a_400_that_names_both(echo, how):
    function = {"name": "tags", "parameters": {"type": "array", "uniqueItems": True}, "strict": "strict" in how}
    body = {"messages": says("a"), "tools": [{"type": "function", "function": function}], "max_tokens": 5}
    status, found = echo.post("/v1/chat/completions", body | ({} if "strict" in how else how))
    assert (status, found["error"]["param"]) == (400, "tools")
    assert "tags" in found["error"]["message"] and "uniqueItems" in found["error"]["message"]


def test_completions_have_no_tools(echo):
    status, found = echo.post("/v1/completions", {"prompt": "a", "tools": TOOLS})
    assert (status, found["error"]["param"]) == (400, "tools")


def test_a_template_whose_form_of_calls_is_unknown_is_refused():
    with pytest.raises(ApiError, match="tools are not supported") as caught:
        tool_constraint(ToolChoice(tools=(CLOCK,)), None, None)
    assert (caught.value.status, caught.value.param) == (400, "tools")
