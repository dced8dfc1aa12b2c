"""`megrez serve` as a user meets it: a process of its own, its address, its log and its end."""

import contextlib
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megrez.runtime.bundle import open_bundle
from megrez.runtime.commands.serve import fit_slots, parse_size
from megrez.runtime.errors import UsageError
from megrez.runtime.serving.http.server import is_loopback
from tests.runtime.serving.http.servers import HANG_S

MAIN = str(Path(__file__).parents[2] / "fake_main.py")
SAYS = "hello world " * 4


@contextlib.contextmanager
def command(*args: object, **env: str) -> Iterator[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if name != "MEGREZ_API_KEY"}
    with subprocess.Popen(
        [sys.executable, MAIN, "serve", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=environment | env,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ready_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], HANG_S)[0]
    return process.stdout.readline()


def begin_stream(process: subprocess.Popen[str], **fields: object) -> http.client.HTTPResponse:
    found = re.search(r"http://127\.0\.0\.1:(\d+):", ready_line(process))
    assert found
    connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=HANG_S)
    body = {"prompt": "secret words", "stream": True, "max_tokens": 300} | fields
    connection.request("POST", "/v1/completions", json.dumps(body))
    return connection.getresponse()


def test_sigterm_in_mid_stream_lets_it_finish(folder):
    with command(folder, "--port", 0, "--slots", 1, SAYS=SAYS, NAP="0.02") as process:
        stream = begin_stream(process)
        first = stream.readline()
        process.send_signal(signal.SIGTERM)
        lines = [first, *stream.readlines()]
        out, err = process.communicate(timeout=HANG_S)
    events = [line.removeprefix(b"data: ").strip() for line in lines if line.strip()]
    assert events[-1] == b"[DONE]"
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1]) == SAYS
    assert (process.returncode, out) == (0, "")
    log = [json.loads(line) for line in err.splitlines()]
    assert [line["event"] for line in log] == ["draining", "request"]
    assert (log[1]["status"], log[1]["path"], log[1]["prompt_tokens"]) == (200, "/v1/completions", 11)
    assert "secret" not in err and "hello" not in err


def test_a_client_that_is_not_finished_after_the_drain_is_told(folder):
    with command(folder, "--port", 0, "--slots", 1, "--drain", 0.1, SAYS=SAYS, NAP="0.05") as process:
        stream = begin_stream(process, ignore_eos=True)
        stream.readline()
        process.send_signal(signal.SIGTERM)
        events = [line for line in stream.readlines() if line.strip()]
        process.communicate(timeout=HANG_S)
    last = json.loads(events[-1].removeprefix(b"data: "))
    assert last["error"]["type"] == "service_unavailable" and "shutting down" in last["error"]["message"]
    assert process.returncode == 0


def test_a_unix_socket_with_a_key_and_a_name(folder, tmp_path):
    path = tmp_path / "s"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()  # as a server that was killed leaves it
    with command(folder, "--uds", path, "--name", "org/model", MEGREZ_API_KEY="secret") as process:
        assert ready_line(process).startswith(f"org/model is served at unix:{path}: 1 slots of 400 tokens")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(
                b"GET /v1/models/org/model HTTP/1.1\r\nHost: x\r\nx-api-key: secret\r\nConnection: close\r\n\r\n"
            )
            read = b"".join(iter(lambda: client.recv(10_000), b""))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=HANG_S)
    assert read.startswith(b"HTTP/1.1 200") and json.loads(read.partition(b"\r\n\r\n")[2])["id"] == "org/model"
    assert process.returncode == 0 and not path.exists()


def assert_refused(said: str, *args: object, **env: str) -> None:
    with command(*args, **env) as process:
        out, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    assert said in err


def test_other_hosts_need_a_key(folder):
    assert_refused("--host 0.0.0.0 can be reached from other machines", folder, "--host", "0.0.0.0", "--port", 0)


def test_a_port_in_use(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_refused(f"127.0.0.1:{port} cannot be listened on", folder, "--port", port)


def test_without_the_extra_the_error_names_it(folder):
    program = "import sys; sys.modules['starlette'] = None; from megrez.runtime.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program, "serve", str(folder)], capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: megrez serve needs starlette")
    assert done.stderr.endswith("run  pip install 'megrez-compile[serve]'\n")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_hosts_that_only_this_machine_reaches(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.com"])
def test_hosts_that_others_reach(host):
    assert not is_loopback(host)


@pytest.mark.parametrize(("text", "size"), [("512M", 512 << 20), ("2g", 2 << 30), ("1.5GiB", 3 << 29), ("4096", 4096)])
def test_sizes(text, size):
    assert parse_size(text) == size


def test_slots_fit_the_memory(folder):
    """32 bytes a token and a context of 64: 2 KiB a slot."""
    bundle = open_bundle(folder)
    assert fit_slots(bundle, "7K", slots=None, context=None) == 3
    assert fit_slots(bundle, "7K", slots=2, context=None) == 2
    assert fit_slots(bundle, "7K", slots=None, context=32) == 7
    assert fit_slots(bundle, "7K", slots=None, context=32, draft=bundle) == 3
    assert fit_slots(bundle, "8M", slots=None, context=None) == 64
    with pytest.raises(UsageError, match=r"--memory 7K holds 224 tokens, 4 x --context 64 are 256"):
        fit_slots(bundle, "7K", slots=4, context=None)
    with pytest.raises(UsageError, match="--memory 1K"):
        fit_slots(bundle, "1K", slots=None, context=None)
    with pytest.raises(UsageError, match="is not a size"):
        fit_slots(bundle, "much", slots=None, context=None)
