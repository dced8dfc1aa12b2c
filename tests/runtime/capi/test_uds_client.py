"""The examples for programs that talk to `megrez serve --uds` instead, against a server in this process."""

import ctypes.util
import json
import subprocess
import threading
from pathlib import Path

import pytest

from megrez.runtime.chat import ChatTemplate
from megrez.runtime.serving.http.app import Limits
from megrez.runtime.serving.http.served import Served
from megrez.runtime.serving.http.server import Server, listening
from tests.runtime.capi.conftest import ROOT, STRICT
from tests.runtime.capi.sums import alone, encode, spoken
from tests.runtime.conftest import MEGREZ_TEMPLATE, byte_level_tokenizer
from tests.runtime.serving.http.servers import fake_llm

HANG_S = 60
QUESTION = 'say "hi",\n then 你好'


@pytest.fixture
def ask(compiler, bundles, tmp_path):
    """Compile an example and ask the question with it: (its output, the answer's text that is right)."""

    def build(name: str, *flags: str) -> tuple[str, str]:
        program, file, ready = tmp_path / "client", tmp_path / "s", threading.Event()
        source = ROOT / "examples" / "embedding" / name
        subprocess.run([compiler, "-std=c99", *STRICT, "-Wpedantic", source, "-o", program, *flags], check=True)
        with fake_llm(bundles["fake"]) as llm, listening("127.0.0.1", 0, file) as (listener, _):
            server = Server(Served.of(llm, "tiny", queue_limit=8), Limits(), drain_s=0, on_ready=ready.set)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            try:
                assert ready.wait(HANG_S)
                done = subprocess.run([program, file, QUESTION], capture_output=True, text=True, timeout=HANG_S)
            finally:
                server.should_exit = True
                thread.join(HANG_S)
        assert done.returncode == 0, done
        prompt = ChatTemplate(MEGREZ_TEMPLATE).render([{"role": "user", "content": QUESTION}])
        ids = alone(encode(byte_level_tokenizer(), prompt), 128)
        return done.stdout, spoken(byte_level_tokenizer(), ids)

    return build


def test_the_client_without_libraries_prints_the_servers_answer(ask):
    said, expected = ask("uds_client.c")
    assert json.loads(said)["choices"][0]["message"]["content"] == expected


def curl_flags(compiler: str) -> list[str]:
    """Of libcurl's own headers, or of our declarations where only the library is installed."""
    has_headers = subprocess.run([compiler, "-E", "-"], input="#include <curl/curl.h>", text=True, capture_output=True)
    library = ctypes.util.find_library("curl")
    if library is None:
        pytest.skip("needs libcurl")
    own = [] if has_headers.returncode == 0 else [f"-I{Path(__file__).parent / 'curl_declarations'}"]
    return [*own, f"-l:{library}"]


def test_the_client_of_libcurl_prints_the_answers_events(ask, compiler):
    said, expected = ask("curl_client.c", *curl_flags(compiler))
    events = [line.removeprefix("data: ") for line in said.split("\n") if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    deltas = [choice["delta"] for event in events for choice in json.loads(event)["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == expected
