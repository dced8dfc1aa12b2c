"""Keys, limits, the tokenizer's endpoints and what is counted."""

import json
import socket

from prometheus_client.parser import text_string_to_metric_families

from megrez.runtime.serving.http.app import Limits
from tests.runtime.serving.http.servers import HANG_S, Gated, wait_until
from tests.runtime.serving.http.test_chat import PROMPT, USER

KEY = {"Authorization": "Bearer secret"}


def read_until(client: socket.socket, end: bytes) -> bytes:
    read = b""
    while end not in read:
        more = client.recv(10_000)
        assert more
        read += more
    return read


def test_a_key_is_asked_for(start):
    server = start(limits=Limits(api_key="secret"))
    wrong = [{}, *({"Authorization": value} for value in ("Bearer wrong", "secret", "Bearer sécret", "Bearer "))]
    for headers in [*wrong, {"x-api-key": "secre"}]:
        code, found = server.post("/v1/completions", {"prompt": "hi", "max_tokens": 1}, **headers)
        assert (code, found["error"]["type"]) == (401, "authentication_error")
        assert server.get("/v1/models", **headers)[0] == 401
    for headers in (KEY, {"authorization": "bearer secret"}, {"x-api-key": "secret"}):
        assert server.post("/v1/completions", {"prompt": "hi", "max_tokens": 1}, **headers)[0] == 200
        assert server.get("/v1/models", **headers)[0] == 200
    assert server.get("/health")[0] == server.get("/ready")[0] == 200


def test_a_full_queue_says_when_to_try_again(start):
    server = start(Gated, slots=1, queue=1)
    body = json.dumps({"prompt": [1], "max_tokens": 1}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    asked = []
    for running, waiting in ((1, 0), (1, 1), (1, 1)):
        asked.append(socket.create_connection(("127.0.0.1", server.port), timeout=HANG_S))
        asked[-1].sendall(head + body)
        wait_until(lambda running=running, waiting=waiting: server.llm.load()[:2] == (running, waiting))
    refused = read_until(asked[-1], b"}}").lower()
    assert refused.startswith(b"http/1.1 429") and b"retry-after: 1\r\n" in refused and b"rate_limit_error" in refused
    server.llm.session.open()
    for one in asked[:2]:
        assert one.recv(10_000).startswith(b"HTTP/1.1 200")
    for one in asked:
        one.close()


def test_a_body_that_does_not_come(start):
    server = start(limits=Limits(body_s=0.05))
    with socket.create_connection(("127.0.0.1", server.port), timeout=HANG_S) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert client.recv(10_000).startswith(b"HTTP/1.1 408")


def test_a_body_without_a_length_is_measured_as_it_comes(start):
    server = start(limits=Limits(body_bytes=1000))
    with socket.create_connection(("127.0.0.1", server.port), timeout=HANG_S) as client:
        client.sendall(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
        assert client.recv(10_000).startswith(b"HTTP/1.1 413")


def test_tokens_there_and_back(server, byte_level):
    ids = byte_level.encode("hello wörld").ids
    found = server.post("/tokenize", {"prompt": "hello wörld", "add_special_tokens": False})[1]
    assert found == {"tokens": ids, "count": len(ids), "max_model_len": 400}
    assert server.post("/detokenize", {"tokens": ids})[1] == {"prompt": "hello wörld"}
    assert server.post("/tokenize", {"messages": USER})[1]["tokens"] == byte_level.encode(PROMPT).ids


def test_the_model_and_its_tokenizer(server, megrez_template):
    models = json.loads(server.get("/v1/models")[1])
    (model,) = models["data"]
    assert (models["object"], model["id"], model["max_model_len"]) == ("list", "tiny", 400)
    assert json.loads(server.get("/v1/models/tiny")[1]) == model
    assert server.get("/v1/models/other/one")[0] == 404
    info = json.loads(server.get("/tokenizer_info")[1])
    assert (info["chat_template"], info["eos_token"], info["bos_token"]) == (megrez_template, "<|turn_end|>", None)


def test_metrics_have_vllms_names_and_count(start):
    server = start(slots=1)
    for _ in range(2):
        server.post("/v1/completions", {"prompt": list(range(40)), "max_tokens": 3, "ignore_eos": True})
    families = text_string_to_metric_families(server.get("/metrics")[1])
    found = {sample.name: sample for family in families for sample in family.samples if "le" not in sample.labels}
    counted = {
        "vllm:prompt_tokens_total": 80,
        "vllm:generation_tokens_total": 6,
        "vllm:prefix_cache_queries_total": 80,
        "vllm:prefix_cache_hits_total": 39,
        "vllm:time_to_first_token_seconds_count": 2,
        "vllm:inter_token_latency_seconds_count": 4,
        "vllm:num_requests_running": 0,
        "vllm:num_requests_waiting": 0,
        "vllm:kv_cache_usage_perc": 0,
    }
    assert {name: found[name].value for name in counted} == counted
    assert {found[name].labels["model_name"] for name in counted} == {"tiny"}
    assert server.metric('vllm:request_success_total{finished_reason="length"') == 2
