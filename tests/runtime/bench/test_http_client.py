"""What the client makes of a server's bytes, sent by a socket that says what it is told; nothing here is timed."""

import asyncio
import dataclasses
import itertools
import json
import socket

import pytest

from megrez.runtime.bench.connection import Address
from megrez.runtime.bench.drive import StoppedError
from megrez.runtime.bench.figures import Record
from megrez.runtime.bench.http_client import HttpClient, find_target
from megrez.runtime.bench.workload import Ask
from megrez.runtime.errors import MegrezError, UsageError

ASK = Ask(prompt=[1, 2, 3], output_tokens=4, seed=9)
MODELS = b'{"data": [{"id": "tiny"}, {"id": "other"}]}'
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}


def response(body: bytes, status: str = "200 OK", *, close: bool = False) -> bytes:
    end = b"connection: close\r\n" if close else b""
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n%s\r\n" % (status.encode(), len(body), end) + body


def events(*found: object) -> bytes:
    lines = [f"data: {one if isinstance(one, str) else json.dumps(one)}\n\n" for one in (*found, "[DONE]")]
    return "".join(lines).encode()


def chunked(*pieces: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        + body
        + b"0\r\n\r\n"
    )


def text(said: str, reason: str | None = None) -> dict[str, object]:
    return {"choices": [{"index": 0, "text": said, "finish_reason": reason}], "usage": None}


STREAM = events(text("a"), text("b c"), text("", "length"), {"choices": [], "usage": USAGE})


class Scripted:
    """Answers GET with `models` and each POST with the next of `answers`; None says nothing at all."""

    def __init__(self, *answers: bytes | None, models: bytes = response(MODELS)) -> None:
        self.answers, self.models = list(answers), models
        self.connections = 0
        self.heads: list[str] = []
        self.bodies: list[dict] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                self.heads.append(head)
                length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
                body = await reader.readexactly(length)
                answer = self.models if head.startswith("GET") else self.answers.pop(0)
                if length:
                    self.bodies.append(json.loads(body))
                if answer is None:
                    await asyncio.sleep(600)
                writer.write(answer)
                await writer.drain()
                if b"content-length" not in answer and not answer.endswith(b"0\r\n\r\n"):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def run(scripted: Scripted, asks: int = 1, *, timeout_s: float = 60.0, **options) -> list[Record]:
    """The records of `asks` requests, one after the other, by a clock that counts its readings."""
    chosen = {"temperature": 0.0, "ignore_eos": True, "chat": False, **options}
    ticks = itertools.count()

    async def go():
        server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        target = dataclasses.replace(await find_target(url, model=None, api_key="key"), timeout_s=timeout_s)
        try:
            async with HttpClient(target, clock=lambda: float(next(ticks)), **chosen) as client:
                return [await client.send(ASK) for _ in range(asks)]
        finally:
            server.close()

    return asyncio.run(go())


def test_tokens_are_counted_by_usage_and_times_are_those_of_chunks_with_text():
    (found,) = run(Scripted(chunked(STREAM)))
    assert found == Record(
        sent=0, times=(1, 2), done=3, prompt_tokens=3, output_tokens=4, cached_tokens=2
    )  # the chunk that says "length" is the last, and has no text


def test_events_may_be_cut_anywhere():
    pieces = [STREAM[at : at + 7] for at in range(0, len(STREAM), 7)]
    assert run(Scripted(chunked(*pieces))) == run(Scripted(chunked(STREAM)))
    closing = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + STREAM  # ended by closing
    assert run(Scripted(closing)) == run(Scripted(chunked(STREAM)))


def test_a_chat_is_asked_for_messages_and_answers_in_deltas():
    def delta(**content: str) -> dict[str, object]:
        return {"choices": [{"delta": content, "finish_reason": None}]}

    stream = events(delta(role="assistant", content=""), delta(content="a"), {"choices": [], "usage": USAGE})
    scripted = Scripted(chunked(stream))
    (found,) = run(scripted, chat=True, ignore_eos=False)
    assert (found.times, found.output_tokens) == ((2,), 4)
    assert "POST /v1/chat/completions HTTP/1.1" in scripted.heads[1]
    assert scripted.bodies[0]["messages"] == [{"role": "user", "content": ASK.prompt}]
    assert "ignore_eos" not in scripted.bodies[0]


def test_the_request_is_the_first_model_with_the_key_exact_lengths_and_usage():
    scripted = Scripted(chunked(STREAM))
    run(scripted)
    assert scripted.bodies == [
        {
            "model": "tiny",
            "prompt": [1, 2, 3],
            "max_tokens": 4,
            "temperature": 0.0,
            "top_p": 1.0,
            "seed": 9,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
            "repetition_penalty": 1.0,
        }
    ]
    assert "POST /v1/completions HTTP/1.1" in scripted.heads[1] and "authorization: Bearer key" in scripted.heads[1]


def test_a_connection_is_kept_until_the_server_closes_it():
    kept = Scripted(*[chunked(STREAM)] * 3)
    run(kept, 3)
    assert kept.connections == 2  # one for the list of models
    refused = response(b"{}", "503 Service Unavailable", close=True)
    closed = Scripted(refused, refused, chunked(STREAM))
    run(closed, 3)
    assert closed.connections == 4


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (response(b'{"error": {"message": "the queue\\nis full"}}', "429 Too Many"), "status 429 (the queue is full)"),
        (response(b"<html>", "502 Bad Gateway"), "status 502 (<html>)"),
        (response(b"", "500 Oops"), "status 500"),
        (chunked(events(text("a"), {"error": {"message": "engine failed"}})), "engine failed"),
        (chunked(events(text("a"), text("", "length"))), "its stream has no usage, so that tokens cannot be counted"),
    ],
)
def test_a_request_that_fails_says_why_and_the_next_goes_on(answer, said):
    first, second = run(Scripted(answer, chunked(STREAM)), 2)
    assert (first.error, first.output_tokens) == (said, 0) and second.error is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (chunked(STREAM)[:-40], "closed the connection in the middle"),
        (b"", "closed the connection in the middle"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "speaks no HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\ndata: {nonsense\n", "not JSON"),
    ],
)
def test_a_server_that_breaks_off_but_lives_failed_one_request(answer, said):
    first, second = run(Scripted(answer, chunked(STREAM)), 2)
    assert first.error is not None and first.error.startswith("the server broke off") and said in first.error
    assert second.output_tokens == 4


def test_a_server_that_breaks_off_and_cannot_be_reached_stopped():
    class Dying(Scripted):
        async def serve(self, reader, writer):
            if self.connections:
                writer.close()
                self.connections += 1
            else:
                await super().serve(reader, writer)

    with pytest.raises(StoppedError, match=r"http://127.0.0.1:\d+/v1 stopped answering \(it closed"):
        run(Dying())


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nda"])
def test_a_server_that_falls_silent_stopped(begun):
    class Silent(Scripted):
        async def serve(self, reader, writer):
            if self.connections:
                writer.write(begun)
                await asyncio.sleep(600)
            await super().serve(reader, writer)

    with pytest.raises(StoppedError, match=r"stopped answering \(it was silent for 0.05 s\)"):
        run(Silent(), timeout_s=0.05)


def test_no_server_and_no_model_are_told_apart():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(MegrezError, match=r"no server answers at http://127\.0\.0\.1:"):
        asyncio.run(find_target(f"http://127.0.0.1:{port}", model=None, api_key=None))
    with pytest.raises(MegrezError, match=r"status 401 \(wrong key\): name the model"):
        run(Scripted(models=response(b'{"error": {"message": "wrong key"}}', "401 Unauthorized")))
    with pytest.raises(MegrezError, match="lists no model"):
        run(Scripted(models=response(b'{"data": []}')))


@pytest.mark.parametrize(
    ("url", "host", "port", "is_tls", "prefix"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1", 8000, False, ""),
        ("http://a:1/v1/", "a", 1, False, ""),
        ("https://gate.example/llm/v1", "gate.example", 443, True, "/llm"),
        ("http://[::1]:80", "::1", 80, False, ""),
    ],
)
def test_addresses(url, host, port, is_tls, prefix):
    assert Address.parse(url) == Address(host=host, port=port, is_tls=is_tls, prefix=prefix)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://a", "http://", "http://a:b", "http://a:99999"])
def test_what_is_no_address_is_misuse(url):
    with pytest.raises(UsageError, match="is no address of a server"):
        Address.parse(url)
