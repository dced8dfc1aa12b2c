"""The peers' environments, and the pipe between benchmarks/speed.py and a runtime in a process of its own."""

import sys
from pathlib import Path

import pytest

from benchmarks.peers.runtimes import PEERS, Peer, UnavailableError, environment_of, find_peers
from benchmarks.peers.turns import opened_runtime, prompts_of, timed_whole

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "peers"


def peer(module: str) -> Peer:
    return Peer(name="some one", module=module, requirements=("x",), script="run_x.py", artefact="hf")


def test_every_peer_has_its_script_and_every_script_its_peer():
    assert {one.script for one in PEERS} | {"run_megrez.py"} == {path.name for path in FOLDER.glob("run_*.py")}
    assert len({one.name for one in PEERS}) == len(PEERS)


def test_by_default_all_peers_of_the_device_are_compared():
    assert {one.name for one in find_peers((), "cpu")} == {
        "onnxruntime-genai", "ik_llama.cpp", "llama.cpp", "OpenVINO GenAI", "transformers"
    }  # fmt: skip
    assert {one.name for one in find_peers((), "cuda")} == {
        "onnxruntime-genai-cuda", "transformers-cuda", "vLLM", "TensorRT-LLM"
    }  # fmt: skip
    assert [one.name for one in find_peers(("llama.cpp",), "cpu")] == ["llama.cpp"]
    with pytest.raises(UnavailableError, match=r"there is no peer llama: choose from onnxruntime-genai, ik_llama.cpp"):
        find_peers(("llama",), "cpu")


def test_a_peer_that_is_not_there_is_refused_with_what_to_do(tmp_path):
    here = Path(sys.executable)
    assert environment_of(peer("json"), tmp_path, {"some one": here}, install=False) == here
    with pytest.raises(UnavailableError, match="has no no_such_module: name a Python that has it"):
        environment_of(peer("no_such_module"), tmp_path, {"some one": here}, install=False)
    with pytest.raises(UnavailableError, match=r"give --install, or --python 'some one=PATH'"):
        environment_of(peer("json"), tmp_path, {}, install=False)
    assert list(tmp_path.iterdir()) == []


def test_an_environment_that_was_made_before_is_used_and_an_incomplete_one_named(tmp_path):
    python = tmp_path / "environments" / "some-one" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    assert environment_of(peer("json"), tmp_path, {}, install=False) == python
    with pytest.raises(UnavailableError, match="is incomplete: remove it"):
        environment_of(peer("no_such_module"), tmp_path, {}, install=True)


RUNTIME = """
import sys
sys.path.insert(0, {folder!r})
from turns import serve, timed
def opened(prompt):
    print("a library that prints")
    asked = []
    def generate():
        asked.append(1)
        return {{**timed(len(prompt), 3, lambda: None, lambda: None), "turn": len(asked), "prompt": prompt}}
    return {{"version": "1.2"}}, generate
serve(opened)
"""


def test_a_runtime_warms_up_and_then_generates_on_request(tmp_path):
    (tmp_path / "runtime.py").write_text(RUNTIME.format(folder=str(FOLDER)))
    with opened_runtime([sys.executable, tmp_path / "runtime.py"], [4, 5, 6]) as runtime:
        assert runtime.about == {"version": "1.2"}
        turns = [runtime.generate() for _ in range(2)]
    assert [turn["turn"] for turn in turns] == [2, 3] and turns[0]["prompt"] == [4, 5, 6]
    assert turns[0]["prefill_tokens_per_s"] > 0 and turns[0]["decode_tokens_per_s"] > 0


def test_a_runtime_that_cannot_start_is_an_error_with_its_output(tmp_path):
    (tmp_path / "runtime.py").write_text("raise SystemExit('no such GPU')")
    with (
        pytest.raises(RuntimeError, match="no such GPU"),
        opened_runtime([sys.executable, tmp_path / "runtime.py"], [1]),
    ):
        pass


def test_streams_begin_differently():
    assert prompts_of([1, 2, 3, 4], 3) == [[1, 2, 3, 4], [2, 3, 4, 1], [3, 4, 1, 2]]


def test_a_runtime_without_steps_is_timed_by_two_generations(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("benchmarks.peers.turns.time.perf_counter", lambda: now[0])

    def generate(tokens: int) -> None:
        now[0] += 2.0 + (tokens - 1) * 0.25

    found = timed_whole(100, 9, generate, streams=4)
    assert found == {"prefill_tokens_per_s": 4 * 100 / 2.0, "decode_tokens_per_s": 4 * 8 / 2.0}
