"""Bad input is the client's error, with OpenAI's shape; never the server's, and the server goes on."""

import contextlib
import http.client
import json
import random

import pytest

from tests.runtime.serving.http.servers import HANG_S, Running, send

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
BODIES = {
    "/v1/completions": {"prompt": "hi", "max_tokens": 1},
    "/v1/chat/completions": CHAT,
    "/v1/messages": CHAT,
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1]},
}
DEEP = json.loads("[" * 70 + "]" * 70)
NOT_TEXT = [1, True, 0.5, [1], {}]
NOT_SIZE = ["1", True, [], {}, float("nan"), float("inf"), -(10**400)]
NOT_NUMBER = [*NOT_SIZE, 10**400]
NOT_FLAG = ["true", 1, [], {}]
NOT_OBJECT = ["a", 1, True, [1]]
# Values that no endpoint may take.
WRONG = {
    "/v1/completions": {
        "model": [*NOT_TEXT, "other", "\ud800"],
        "prompt": [1, True, {}, [], "", [[]], [[True]], ["a", 1], [-1], [10**30], [267], "\ud800x", [[1], "\udfff"]],
        "max_tokens": [*NOT_SIZE, -1, 0.5, 0],
        "temperature": [*NOT_NUMBER, -0.1, 2.1],
        "top_p": [*NOT_NUMBER, -1, 1.1],
        "top_k": [*NOT_SIZE, -2, 0.5],
        "min_p": [*NOT_NUMBER, 2],
        "n": [*NOT_NUMBER, 0, 65],
        "seed": [*NOT_NUMBER, 2**63],
        "logprobs": [*NOT_NUMBER, -1, 21],
        "stop": [1, {}, [1], [""], "", ["a"] * 17, "x" * 1025],
        "stop_token_ids": ["a", [-1], [267], [10**30], [True], {}],
        "logit_bias": [*NOT_OBJECT, {"a": 1}, {"1": 101}, {"1": "x"}, {"267": 1}, {"9" * 5000: 1}, {"-1": 1}],
        "repetition_penalty": [*NOT_NUMBER, 0],
        "presence_penalty": [*NOT_NUMBER, 3],
        "frequency_penalty": [*NOT_NUMBER, -3],
        "min_tokens": [*NOT_SIZE, -1, 2],
        "stream": NOT_FLAG,
        "echo": NOT_FLAG,
        "ignore_eos": NOT_FLAG,
        "stream_options": [*NOT_OBJECT, {"include_usage": 1}],
        "best_of": [*NOT_SIZE, 2],
        "suffix": ["a"],
        "anything": [DEEP],
    },
    "/v1/chat/completions": {
        "messages": [
            "hi",
            {},
            [],
            [1],
            [{}],
            [{"role": "user", "content": 1}],
            [{"role": "user"}],
            [{"role": 1, "content": "a"}],
            [{"role": "", "content": "a"}],
            [{"role": "user", "content": [{"type": "text"}]}],
            [{"role": "user", "content": [{"type": "text", "text": 3}]}],
            [{"role": "user", "content": "\ud800"}],
            [{"role": "user", "content": "a" * 3000}],
        ],
        "logprobs": NOT_FLAG,
        "top_logprobs": [1, "a", -1],
        "response_format": [*NOT_OBJECT, {}, {"type": ["text"]}, {"type": "json_schema", "json_schema": [1]}],
        "guided_json": [1, True, [1], "{", {"type": "frob"}, {"enum": 3}, {"const": "\ud800"}, {"$ref": "#/none"}],
        "guided_regex": [1, True, [1], {}, "(", "\ud800"],
        "guided_choice": ["a", 1, {}, [], [1], ["\ud800"]],
        "guided_grammar": [1, [1], "", "start: none", "\ud800"],
        "structured_outputs": [*NOT_OBJECT, {}, {"json": 1}, {"regex": "a", "choice": ["a"]}],
        "tools": [["f"], {"a": 1}, "x", [{}], [{"function": {"name": ["f"]}}], [{"function": {"name": "\ud800"}}]],
        "tool_choice": [1, True, [], "x", {}, {"type": "function", "function": "f"}, "required"],
        "parallel_tool_calls": NOT_FLAG,
        "add_generation_prompt": NOT_FLAG,
        "max_completion_tokens": [*NOT_SIZE, 0],
    },
    "/v1/messages": {
        "system": [1, True, {"a": 1}, [{"type": "image"}], "\ud800"],
        "stop_sequences": [1, [1], [""]],
        "max_tokens": [*NOT_SIZE, 0],
    },
    "/tokenize": {"prompt": [*NOT_TEXT, "\ud800"], "add_special_tokens": NOT_FLAG, "messages": ["x", [1], [{}]]},
    "/detokenize": {"tokens": ["a", [-1], [267], [10**30], {}, [True], [1.5]]},
}


@pytest.fixture
def connection(server: Running):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=HANG_S)) as connection:
        yield connection


def assert_refused(path: str, status: int, found: dict) -> None:
    assert 400 <= status < 500, found
    error = found["error"]
    assert isinstance(error["message"], str) and error["message"]
    if path == "/v1/messages":
        assert found["type"] == "error" and set(error) == {"type", "message"}
    else:
        assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", WRONG)
def test_each_field_alone(connection, path):
    for field, values in WRONG[path].items():
        for value in values:
            status, found = send(connection, path, BODIES[path] | {field: value})
            try:
                assert_refused(path, status, found)
            except AssertionError as error:
                raise AssertionError(f"{field}={value!r:.60} got {status}: {found}") from error


def test_the_field_at_fault_is_named(connection):
    for field in ("temperature", "n", "stop", "logit_bias", "stream", "prompt", "max_tokens"):
        _, found = send(connection, "/v1/completions", BODIES["/v1/completions"] | {field: [{}]})
        assert field in found["error"]["message"] and found["error"]["param"] == field


def test_any_mixture_is_answered_or_refused(connection):
    draw = random.Random(11)
    junk = [value for fields in WRONG.values() for values in fields.values() for value in values]
    for _ in range(150):
        path = draw.choice(list(BODIES))
        names = draw.sample([name for fields in WRONG.values() for name in fields], 4)
        body = BODIES[path] | {name: draw.choice(junk) for name in names if name not in ("anything", "stream")}
        status, found = send(connection, path, body)
        if status != 200:
            assert_refused(path, status, found)


def test_bytes_that_are_no_json_object(connection):
    draw = random.Random(12)
    whole = json.dumps(BODIES["/v1/completions"]).encode()
    fixed = [b"", b"[]", b"1", b"null", b'"a"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000]
    cut = [whole[: draw.randrange(len(whole))] for _ in range(10)]
    noise = [draw.randbytes(draw.randrange(1, 60)) for _ in range(20)]
    for raw in [*fixed, *cut, *noise]:
        assert_refused("/v1/completions", *send(connection, "/v1/completions", raw))


@pytest.mark.parametrize("size", [1_000_000, 10_000_000])
def test_prompts_that_are_far_too_long(server, size):
    status, found = server.post("/v1/completions", {"prompt": "word " * (size // 5)})
    assert status == (400 if size < 8 << 20 else 413)
    assert_refused("/v1/completions", status, found)
    if status == 400:
        assert found["error"]["code"] == "context_length_exceeded"


def test_a_batch_that_could_never_wait_is_refused_and_not_told_to_try_again(start):
    server = start(slots=1, queue=2)
    assert server.post("/v1/completions", {"prompt": [[1]] * 4})[0] == 400
    assert server.post("/v1/completions", {"prompt": [[1]] * 3, "max_tokens": 1})[0] == 200


@pytest.mark.parametrize(("method", "path", "code"), [("GET", "/v1/none", 404), ("GET", "/v1/completions", 405)])
def test_unknown_paths_and_methods(connection, method, path, code):
    connection.request(method, path)
    found = connection.getresponse()
    assert_refused(path, found.status, json.loads(found.read()))
    assert found.status == code


def test_the_server_goes_on(server):
    assert server.llm.load() == (0, 0, 0)
    assert server.post("/v1/completions", BODIES["/v1/completions"])[0] == 200
