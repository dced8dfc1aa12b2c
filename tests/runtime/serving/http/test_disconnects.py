"""A client that goes away frees what it holds within one step, wherever its request is."""

import json
import socket

import pytest

from tests.runtime.serving.http.servers import HANG_S, Gated, Running, alone, wait_until

ABORTED = 'vllm:request_success_total{finished_reason="abort"'


@pytest.fixture(params=[True, False], ids=["streaming", "not streaming"])
def stream(request):
    return request.param


def ask(server: Running, prompt: list[int], *, stream: bool, **fields: object) -> socket.socket:
    """Send a request and wait for nothing."""
    body = {"prompt": prompt, "stream": stream, "ignore_eos": True, "max_tokens": 300} | fields
    raw = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=HANG_S)
    connection.sendall(head.encode() + raw)
    return connection


def leave(server: Running, connection: socket.socket, sequences: int = 1) -> None:
    """Close, and wait until the server has seen it."""
    before = server.metric(ABORTED)
    connection.close()
    wait_until(lambda: server.metric(ABORTED) == before + sequences)


@pytest.mark.parametrize("steps", [0, 1, 3], ids=["prefill", "first token", "decode"])
def test_one_that_runs(start, stream, steps):
    server = start(Gated, slots=1)
    session = server.llm.session
    client = ask(server, [1, 2, 3], stream=stream)
    session.allow(steps)
    wait_until(lambda: session.entered == steps + 1)
    leave(server, client)
    session.allow()  # the step that runs cannot be stopped
    wait_until(lambda: server.llm.load() == (0, 0, 0))
    assert session.entered == steps + 1
    assert server.metric("vllm:num_requests_running") == 0


def test_one_that_waits_leaves_those_that_run_alone(start, stream):
    server = start(Gated, slots=1)
    session = server.llm.session
    heard: list[object] = []
    from megrez.runtime.sampling import SamplingParams

    server.llm.submit([5, 6], SamplingParams(max_tokens=5, ignore_eos=True), heard.append)
    wait_until(lambda: session.entered == 1)
    client = ask(server, [1, 2, 3], stream=stream)
    wait_until(lambda: server.metric("vllm:num_requests_waiting") == 1)
    leave(server, client)
    session.open()
    wait_until(lambda: server.llm.load() == (0, 0, 0) and len(heard) == 5)
    assert [token.token for token in heard] == alone([5, 6], 5, stops=())
    assert session.entered == 5  # none was spent on the one that left


def test_all_sequences_of_a_batch(start, stream):
    server = start(Gated, slots=2)
    session = server.llm.session
    client = ask(server, [[1], [2]], stream=stream, n=2)
    wait_until(lambda: session.entered == 1)
    leave(server, client, sequences=4)
    session.allow()
    wait_until(lambda: server.llm.load() == (0, 0, 0))
    assert session.entered == 1


def test_one_that_reads_nothing_does_not_hold_up_others(start):
    server = start(slots=2)
    silent = ask(server, [3], stream=True)
    status, found = server.post("/v1/completions", {"prompt": [4], "max_tokens": 2})
    assert (status, found["usage"]["completion_tokens"]) == (200, 2)
    silent.close()
    wait_until(lambda: server.llm.load() == (0, 0, 0))
