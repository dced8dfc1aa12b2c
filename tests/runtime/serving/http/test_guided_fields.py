"""response_format and vLLM's fields of guided output, over a model that says what the user says."""

import asyncio
import json
import re
import threading

import pydantic
import pytest

from tests.runtime.serving.http.clients import anthropic_client, openai_async_client
from tests.runtime.serving.http.servers import HANG_S, Echo, says

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 10}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
GOOD, BAD = '{"name": "Ann", "age": 42}', '{"name": "Ann", "age": 9, "x": 1}'
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
DIGITS = "[0-9]{3}"
LARK = 'start: "yes" | "no"'


def answer(client, text: str, **fields: object) -> str:
    found = client.chat.completions.create(model="tiny", messages=says(text), max_tokens=120, **fields)
    assert found.choices[0].finish_reason == "stop"
    return found.choices[0].message.content


def valid(text: str) -> bool:
    person = json.loads(text)
    return set(person) == {"name", "age"} and person["age"] >= 10 and len(person["name"]) <= 5


def test_without_a_form_the_model_says_what_it_likes(client):
    assert answer(client, BAD) == BAD


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": JSON_SCHEMA},
        {"extra_body": {"guided_json": PERSON}},
        {"extra_body": {"guided_json": json.dumps(PERSON)}},
        {"extra_body": {"structured_outputs": {"json": PERSON, "regex": None, "disable_fallback": True}}},
    ],
    ids=["response_format", "guided_json", "as text", "structured_outputs"],
)
def test_a_schema_holds_the_answer(client, fields):
    assert answer(client, GOOD, **fields) == GOOD
    held = answer(client, BAD, **fields)
    assert held.startswith('{"name": "Ann", "age": 9') and valid(held)


def test_json_object_takes_any_object_and_nothing_else(client):
    form = {"type": "json_object"}
    assert answer(client, BAD, response_format=form) == BAD
    assert isinstance(json.loads(answer(client, '["a"]', response_format=form)), dict)


@pytest.mark.parametrize(
    ("fields", "good", "bad", "held"),
    [
        ({"guided_regex": DIGITS}, "123", "1x3", r"1\d3"),
        ({"guided_choice": ["left", "right"]}, "right", "middle", "left|right"),
        ({"guided_grammar": LARK}, "no", "maybe", "yes|no"),
        ({"structured_outputs": {"regex": DIGITS}}, "123", "1x3", r"1\d3"),
        ({"structured_outputs": {"choice": ["left", "right"]}}, "right", "middle", "left|right"),
        ({"structured_outputs": {"grammar": LARK}}, "no", "maybe", "yes|no"),
        ({"structured_outputs": {"json_object": True}}, "{}", "[]", r"\{.*\}"),
    ],
)
def test_other_forms_hold_the_answer_in_both_endpoints(client, fields, good, bad, held):
    assert answer(client, good, extra_body=fields) == good
    assert re.fullmatch(held, answer(client, bad, extra_body=fields))
    for text in (good, bad):
        prompt = f"<|role_end|>{text}<|role_end|>"
        found = client.completions.create(model="tiny", prompt=prompt, max_tokens=60, n=2, extra_body=fields)
        assert [re.fullmatch(held, one.text) is not None for one in found.choices] == [True, True]


def test_a_parsed_answer_and_a_streamed_one(client):
    class Person(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        name: str
        age: int

    found = client.chat.completions.parse(model="tiny", messages=says(GOOD), response_format=Person, max_tokens=80)
    assert found.choices[0].message.parsed == Person(name="Ann", age=42)
    with client.chat.completions.stream(
        model="tiny", messages=says(GOOD), response_format=Person, max_tokens=80
    ) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == Person(name="Ann", age=42)


def test_an_answer_that_is_cut_says_so(client):
    found = client.chat.completions.create(model="tiny", messages=says(GOOD), max_tokens=4, response_format=JSON_SCHEMA)
    assert found.choices[0].finish_reason == "length" and GOOD.startswith(found.choices[0].message.content)


def test_many_at_once_are_each_held_to_their_own(echo):
    async def ask_all():
        async with openai_async_client(echo) as client:
            asked = (
                client.chat.completions.create(
                    model="tiny", messages=says("?"), max_tokens=20, extra_body={"guided_choice": [f"answer {k}"]}
                )
                for k in range(12)
            )
            return await asyncio.gather(*asked)

    found = asyncio.run(ask_all())
    assert [one.choices[0].message.content for one in found] == [f"answer {k}" for k in range(12)]


def test_anthropics_output_format(echo):
    with anthropic_client(echo) as client:
        form = {"format": {"type": "json_schema", "schema": PERSON}}
        found = client.messages.create(model="tiny", max_tokens=120, messages=says(BAD), output_config=form)
    assert valid(found.content[0].text)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"uniqueItems": True}}}}, "uniqueItems"),
        ({"guided_json": {"properties": {"a": {"contains": {}}}}}, "contains"),
        ({"guided_json": {"type": "string", "format": "postcode"}}, "postcode"),
        ({"guided_json": "{"}, "JSON"),
        ({"guided_json": {"const": "\ud800"}}, "guided_json"),
        ({"guided_json": {"type": "string", "minLength": 10**30}}, "guided_json"),
        ({"guided_json": 3}, "guided_json"),
        ({"guided_regex": "("}, "unclosed"),
        ({"guided_regex": "\ud800"}, "guided_regex"),
        ({"guided_regex": 5}, "guided_regex"),
        ({"guided_grammar": "start: nothing"}, "nothing"),
        ({"guided_grammar": ""}, "guided_grammar"),
        ({"guided_grammar": "start: a\na: b\nb: a"}, "can begin"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a", 1]}, "guided_choice"),
        ({"guided_choice": "a"}, "guided_choice"),
        ({"guided_choice": ["\udfff"]}, "guided_choice"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structural_tag"),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "whitespace_pattern"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "json_schema.schema"),
        ({"grammar": LARK}, "guided_grammar"),
    ],
)
def test_what_cannot_be_enforced_is_a_400_that_names_it(echo, fields, named):
    """There is never an unconstrained answer instead."""
    for path, body in (
        ("/v1/chat/completions", {"messages": says("a")}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/messages", {"messages": says("a")}),
    ):
        status, found = echo.post(path, {**body, "max_tokens": 5, **fields})
        assert status == 400 and named in found["error"]["message"], found
        if path != "/v1/messages":
            assert found["error"]["param"].split(".")[0] in fields


def test_others_are_served_while_a_grammar_is_compiled_once(start):
    server = start(Echo, slots=1)
    entered, leave, compiled = threading.Event(), threading.Event(), server.llm.compile_guided
    grammars = []

    def slow(guided):
        entered.set()
        assert leave.wait(HANG_S)
        grammars.append(compiled(guided))
        return grammars[-1]

    server.llm.compile_guided = slow
    found = []
    body = {"messages": says("b"), "guided_choice": ["a", "b"], "max_tokens": 3}
    asking = threading.Thread(target=lambda: found.append(server.post("/v1/chat/completions", body)))
    asking.start()
    assert entered.wait(HANG_S)
    assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200
    leave.set()
    asking.join(HANG_S)
    assert found[0][1]["choices"][0]["message"]["content"] == "b" and len(grammars) == 1


def test_null_asks_for_no_form(echo):
    names = ("response_format", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs")
    body = {"messages": says("free"), "max_tokens": 9} | dict.fromkeys(names)
    status, found = echo.post("/v1/chat/completions", body)
    assert status == 200 and found["choices"][0]["message"]["content"] == "free"
