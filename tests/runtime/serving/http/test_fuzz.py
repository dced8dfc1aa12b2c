"""Valid requests with one to three parts replaced by junk, and clients that misbehave: never a 500 or a stuck slot.

A new field of an endpoint is one line in WHOLE, or in CHOICES where it excludes others.
"""

import contextlib
import copy
import http.client
import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megrez.runtime.serving.http.app import Limits
from tests.runtime.serving.http.servers import HANG_S, Gated, Running, alone, fake_llm, serving, wait_until
from tests.runtime.serving.http.test_malformed import assert_refused

MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "there"}]},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "again"},
]
SAMPLING = {
    "model": "tiny",
    "max_tokens": 3,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "seed": 1,
    "stream": False,
    "stop_token_ids": [5],
    "ignore_eos": False,
    "min_tokens": 1,
    "logit_bias": {"5": -1.5, "7": 100},
    "repetition_penalty": 1.1,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
}
OPENAI = {"n": 2, "stop": ["xyz", "\n\n"], "stream_options": {"include_usage": True}, "user": "somebody"}
# Every documented field of every endpoint, with a valid value.
WHOLE: dict[str, dict[str, Any]] = {
    "/v1/completions": {
        **SAMPLING,
        **OPENAI,
        "prompt": [[1, 2, 3], [4, 5]],
        "logprobs": 2,
        "echo": True,
        "best_of": 2,
        "suffix": None,
    },
    "/v1/chat/completions": {
        **SAMPLING,
        **OPENAI,
        "messages": MESSAGES,
        "max_completion_tokens": 3,
        "logprobs": True,
        "top_logprobs": 2,
        "add_generation_prompt": True,
        "response_format": {"type": "text"},
        "tools": [],
        "tool_choice": "none",
    },
    "/v1/messages": {
        **SAMPLING,
        "messages": MESSAGES[1:],
        "system": [{"type": "text", "text": "be brief"}],
        "stop_sequences": ["xyz"],
        "thinking": {"type": "disabled"},
        "metadata": {"user_id": "somebody"},
    },
    "/v1/messages/count_tokens": {"model": "tiny", "system": "be brief", "messages": MESSAGES[1:]},
    "/tokenize": {"model": "tiny", "prompt": "hi", "add_special_tokens": False},
    "/detokenize": {"model": "tiny", "tokens": [1, 2, 3]},
}
# Fields of which a request has one at most.
PERSON = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
FUNCTION = {"type": "function", "function": {"name": "f", "description": "d", "parameters": PERSON, "strict": True}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"age": 1}'}}
RESULT = [
    *MESSAGES,
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "x"},
]
TOOL = {"name": "f", "description": "d", "input_schema": PERSON}
USE = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"age": 1}}
USED = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "x"}]}
BLOCKS = [*MESSAGES[1:], {"role": "assistant", "content": [USE]}, {"role": "user", "content": [USED]}]
GUIDED: list[dict[str, Any]] = [
    {"response_format": JSON_SCHEMA},
    {"response_format": {"type": "json_object"}},
    {"guided_json": PERSON},
    {"guided_regex": "[a-c]{2}"},
    {"guided_choice": ["yes", "no"]},
    {"guided_grammar": 'start: "a" | "b"'},
    {"structured_outputs": {"regex": "[a-c]{2}"}},
]
CHOICES: dict[str, list[dict[str, Any]]] = {
    "/v1/completions": [*GUIDED, {"prompt": ["hi", "there"]}, {"prompt": "hi", "best_of": None}, {"prompt": [1, 2]}],
    "/v1/chat/completions": [
        *GUIDED,
        {"tools": [FUNCTION], "tool_choice": "auto", "parallel_tool_calls": True, "messages": RESULT},
        {"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "f"}}},
    ],
    "/v1/messages": [
        {"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}, "messages": BLOCKS},
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f"}},
        {"output_config": {"format": {"type": "json_schema", "schema": PERSON}}},
    ],
    "/v1/messages/count_tokens": [{"tools": [TOOL], "messages": BLOCKS}],
    "/tokenize": [{"prompt": None, "messages": MESSAGES, "add_generation_prompt": True, "tools": [FUNCTION]}],
    "/detokenize": [{"tokens": []}],
}
JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, -(10**400), 0.5, -0.0, 1e-320, 1e308,
    float("nan"), float("inf"), float("-inf"), "", " ", "a", "0", "true", "null", "\x00", "\ud800", "a\udfffb", "é" * 3,
    "🙂", "a" * 5000, "<|turn_end|>", "{{ 1 / 0 }}", "[DONE]", [], [[]], [None], [True], [0.5], ["\ud800"], [{}], {},
    {"": ""}, {"\ud800": "\udfff"}, {"type": "text"}, {"a" * 3000: 1}, {"__class__": 1}, [1] * 3000,
    json.loads("[" * 60 + "]" * 60), json.loads('{"a":' * 60 + "1" + "}" * 60),
]  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every part."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield value, key
        yield from places(part)


def spoil(source: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    """A copy with one to three parts replaced, removed, renamed or wrapped."""
    body = copy.deepcopy(body)
    for _ in range(source.choice((1, 1, 2, 3))):
        container, key = source.choice(list(places(body)) or [(body, "prompt")])
        part = container[key] if key in container or isinstance(container, list) else None
        change = source.choice(("replace", "replace", "replace", "remove", "rename", "wrap"))
        if change == "remove":
            del container[key]
        elif change == "rename" and isinstance(container, dict):
            container[source.choice((str(key).upper(), f"{key}\ud800", f" {key}", "x"))] = container.pop(key)
        elif change == "wrap":
            container[key] = source.choice(([part], {"a": part}, json.dumps(part), [part] * 2))
        else:
            container[key] = copy.deepcopy(source.choice(JUNK))
    return body


def post(connection: http.client.HTTPConnection, path: str, raw: bytes) -> tuple[int, str, bytes]:
    connection.request("POST", path, raw)
    found = connection.getresponse()
    return found.status, found.headers["content-type"], found.read()


def check(path: str, status: int, kind: str, read: bytes) -> None:
    """200 with all that was asked for, or a refusal with its shape."""
    if kind.startswith("text/event-stream"):
        assert status == 200
        assert b"message_stop" in read if path == "/v1/messages" else read.endswith(b"data: [DONE]\n\n")
        return
    found = json.loads(read)
    if status != 200:
        if path == "/v1/messages/count_tokens":
            path = "/v1/messages"
        assert_refused(path, status, found)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    """A short context: where junk takes max_tokens away, an answer fills it."""
    with serving(fake_llm(folder, slots=4, capacity=700)) as running:
        yield running


@pytest.fixture
def connection(server: Running) -> Iterator[http.client.HTTPConnection]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=HANG_S)) as connection:
        yield connection


def trial(connection: http.client.HTTPConnection, path: str, body: dict[str, Any]) -> None:
    status, kind, read = post(connection, path, json.dumps(body).encode())
    try:
        check(path, status, kind, read)
    except AssertionError as error:
        raise AssertionError(f"{body!r} got {status}: {read!r:.200}") from error


@pytest.mark.parametrize("path", WHOLE)
def test_whole_requests_are_answered(connection, path):
    for choice in ({}, *CHOICES[path]):
        status, _, read = post(connection, path, json.dumps(WHOLE[path] | choice).encode())
        assert status == 200, (choice, read)


@pytest.mark.parametrize("path", WHOLE)
def test_junk_in_every_field(connection, path):
    source = random.Random(path)
    names = dict.fromkeys(name for fields in (WHOLE[path], *CHOICES[path]) for name in fields)
    for name in names:
        for value in source.sample(JUNK, 8):
            trial(connection, path, WHOLE[path] | {"n": 1, name: value})


@pytest.mark.parametrize("path", WHOLE)
def test_spoiled_requests(connection, path):
    source = random.Random(path)
    for _ in range(100):
        whole = WHOLE[path] | source.choice(({}, *CHOICES[path]))
        whole |= {"stream": source.random() < 0.3, "echo": False} if path.startswith("/v1") else {}
        trial(connection, path, spoil(source, whole))


def test_spoiled_bytes(connection):
    source = random.Random(3)
    for _ in range(150):
        path = source.choice(list(WHOLE))
        raw = bytearray(json.dumps(WHOLE[path], ensure_ascii=source.random() < 0.5).encode())
        for _ in range(source.randrange(1, 6)):
            at = source.randrange(len(raw))
            raw[at : at + source.randrange(3)] = source.choice((b"", b"\x00", b"\xff", b'"', b"}", b"[", b"9", b"\\u"))
        check(path, *post(connection, path, bytes(raw)))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig", "latin-1"])
def test_other_encodings(connection, encoding):
    raw = json.dumps({"prompt": "é", "max_tokens": 1}, ensure_ascii=False).encode(encoding)
    check("/v1/completions", *post(connection, "/v1/completions", raw))


def test_no_slot_is_stuck_and_answers_are_what_they_were(server):
    wait_until(lambda: server.llm.load() == (0, 0, 0))
    status, found = server.post("/v1/completions", {"prompt": [3, 4], "max_tokens": 9, "temperature": 0, "logprobs": 0})
    assert (status, found["usage"]["completion_tokens"]) == (200, len(alone([3, 4], 9)))


def opened(server: Running, raw: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=HANG_S)
    client.sendall(raw)
    return client


def request(body: object, *, path: str = "/v1/completions", **headers: str) -> bytes:
    raw = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"Content-Length: {len(raw)}",
        *(f"{a}: {b}" for a, b in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + raw


LONG = {"prompt": [1, 2, 3], "max_tokens": 300, "ignore_eos": True}


@pytest.mark.parametrize("stream", [True, False])
def test_a_half_closed_client_leaves_no_slot_behind(start, stream):
    server = start(Gated, slots=1)
    client = opened(server, request(LONG | {"stream": stream}))
    wait_until(lambda: server.llm.session.entered == 1)
    client.shutdown(socket.SHUT_WR)
    server.llm.session.open()
    wait_until(lambda: server.llm.load() == (0, 0, 0))
    assert server.post("/v1/completions", {"prompt": [4], "max_tokens": 2})[0] == 200
    client.close()


def test_a_client_that_sends_byte_by_byte_is_answered(start):
    server = start(slots=1)
    raw = request({"prompt": [4], "max_tokens": 2})
    client = opened(server, raw[:1])
    for at in range(1, len(raw)):
        client.sendall(raw[at : at + 1])
    assert client.recv(10_000).startswith(b"HTTP/1.1 200")
    client.close()


def test_clients_that_stop_within_a_request_take_no_slot(start):
    server = start(slots=1, limits=Limits(body_s=HANG_S))
    raw = request({"prompt": [4], "max_tokens": 2})
    clients = [opened(server, raw[:length]) for length in range(1, len(raw) - 1, 7)]
    assert server.llm.load() == (0, 0, 0)
    assert server.post("/v1/completions", {"prompt": [4], "max_tokens": 2})[0] == 200
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/99\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999999\r\n\r\n{",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\n\xff\xfe: x\r\n\r\n",
    ],
)
def test_bytes_that_are_no_request(start, raw):
    server = start(slots=1)
    client = opened(server, raw)
    read = client.recv(10_000)
    assert read == b"" or read.startswith(b"HTTP/1.1 4"), read
    client.close()
    assert server.post("/v1/completions", {"prompt": [4], "max_tokens": 2})[0] == 200


def test_a_wrong_key_is_refused_before_the_body_is_read(start):
    server = start(limits=Limits(api_key="secret"))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n"
    for key in (b"", b"Authorization: Bearer \xff\xfe\r\n", b"x-api-key: \r\n", b"Authorization: Basic secret\r\n"):
        client = opened(server, head + key + b"\r\n{")
        assert client.recv(10_000).startswith(b"HTTP/1.1 401")
        client.close()
