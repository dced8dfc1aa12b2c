"""The `megrez` command as a user meets it: in its own process, by exit code, stdout and stderr."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megrez.runtime.commands.inspect import quantization_line
from megrez.runtime.manifest import Calibration, Quantization
from tests.forks import RUNTIME, forks

HEAVY = {"numpy", "jinja2", "tokenizers", "onnxruntime", "onnx", "onnx_ir", "torch", "transformers"}
MAIN = str(Path(__file__).with_name("fake_main.py"))


def megrez(*args: object, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return forks(RUNTIME).run(MAIN, args, stdin=stdin, env=env)


@pytest.fixture
def bundle(make_bundle, byte_level, megrez_template) -> Path:
    return make_bundle(tokenizer=byte_level, template=megrez_template)


@pytest.fixture
def base_bundle(make_bundle, byte_level) -> Path:
    return make_bundle("base", tokenizer=byte_level)


def assert_one_line_error(done: subprocess.CompletedProcess[str], code: int, said: str) -> None:
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert said in done.stderr


def test_run_prints_the_answer_on_stdout_and_the_speed_on_stderr(bundle):
    done = megrez("run", bundle, "hi", SAYS="hello 你")
    assert (done.returncode, done.stdout) == (0, "hello 你\n")
    assert "tokens/s" in done.stderr and done.stderr.count("\n") == 1


def test_run_json_has_exactly_the_fields_promised(bundle):
    done = megrez("run", bundle, "-", "--json", stdin="hi", SAYS="hello 你")
    answer = json.loads(done.stdout)
    assert list(answer) == [
        "text",
        "token_ids",
        "prompt_tokens",
        "output_tokens",
        "finish_reason",
        "ttft_s",
        "decode_tokens_per_s",
        "drafted_tokens",
        "accepted_tokens",
    ]
    assert (answer["text"], answer["finish_reason"]) == ("hello 你", "stop")
    assert answer["output_tokens"] == len(answer["token_ids"]) and answer["token_ids"][-1] == 264
    assert done.stderr == ""


def test_the_template_the_system_message_and_raw_decide_the_prompt(bundle, byte_level):
    def prompt_tokens(*options: str) -> int:
        return json.loads(megrez("run", bundle, "hi", "--json", *options).stdout)["prompt_tokens"]

    turn = "<|role_start|>{}<|role_end|>{}<|turn_end|>"
    asked = turn.format("system", "Be brief.") + turn.format("user", "hi") + "<|role_start|>assistant<|role_end|>"
    assert prompt_tokens("--raw") == 2
    assert prompt_tokens("--system", "Be brief.") == len(byte_level.encode(asked).ids)


def test_run_options_reach_the_decode_loop(bundle):
    short = json.loads(megrez("run", bundle, "hi", "--json", "--max-tokens", 2, SAYS="abc").stdout)
    assert (short["text"], short["finish_reason"]) == ("ab", "length")
    cut = json.loads(megrez("run", bundle, "hi", "--json", "--stop", "x", "--stop", "bc", SAYS="abcd").stdout)
    assert (cut["text"], cut["finish_reason"]) == ("a", "stop")


def test_sampling_options_change_the_draw_and_a_seed_repeats_it(bundle):
    def text(*options: object) -> str:
        done = megrez("run", bundle, "hi", "--json", "--max-tokens", 20, "--temperature", 30, *options)
        return json.loads(done.stdout)["text"]

    assert text("--seed", 1) == text("--seed", 1) != text("--seed", 2)
    assert text("--seed", 1, "--top-k", 1) == text("--seed", 2, "--top-p", 1e-9) == "hello"


def test_a_base_model_continues_text_and_says_so(base_bundle):
    done = megrez("run", base_bundle, "hi")
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert "no chat template" in done.stderr
    assert megrez("run", base_bundle, "hi", "--raw").stderr.count("\n") == 1


@pytest.mark.parametrize("broken", [b"{% for %}", b"\xff"], ids=["no-jinja", "no-utf8"])
def test_a_broken_template_leaves_raw_runs_alone(bundle, broken):
    # The manifest knows the size alone unless --verify asks for more.
    path = bundle / "chat_template.jinja"
    path.write_bytes(broken.ljust(path.stat().st_size))
    done = megrez("run", bundle, "hi", "--raw")
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    assert_one_line_error(megrez("run", bundle, "hi"), 1, "chat")
    assert_one_line_error(megrez("chat", bundle, stdin="hi\n"), 1, "chat")


def test_a_line_that_the_template_refuses_is_named_and_the_chat_goes_on(make_bundle, byte_level):
    refusing = (
        "{% for m in messages %}{% if 'bad' in m.content %}{{ raise_exception('no bad words') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    bundle = make_bundle("refusing", tokenizer=byte_level, template=refusing)
    done = megrez("chat", bundle, stdin="one\nbad\ntwo\n")
    # The third line would be refused too if the second had stayed in the conversation.
    assert (done.returncode, done.stdout) == (2, "hello\n" * 2)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "no bad words" in done.stderr


def test_system_without_a_template_is_misuse(base_bundle, bundle):
    assert_one_line_error(megrez("run", base_bundle, "hi", "--system", "x"), 2, "needs a chat template")
    assert_one_line_error(megrez("run", bundle, "hi", "--system", "x", "--raw"), 2, "--raw")


def test_a_missing_bundle_fails_and_a_long_prompt_is_misuse(bundle, tmp_path):
    assert_one_line_error(megrez("run", tmp_path / "none", "hi"), 1, "there is no bundle at")
    done = megrez("run", bundle, "x" * 500, "--raw", "--json")
    assert_one_line_error(done, 2, "the prompt has 500 tokens, the context holds 400")
    assert_one_line_error(megrez("run", bundle, "", "--raw"), 2, "empty")
    assert_one_line_error(megrez("run", bundle, "hi", "--top-p", 3), 2, "top_p=3")


def test_a_damaged_file_is_found_by_verify(bundle):
    (bundle / "model.onnx").write_text("Weights")
    assert megrez("run", bundle, "hi").returncode == 0
    assert_one_line_error(megrez("run", bundle, "hi", "--verify"), 1, "SHA-256")


@pytest.mark.parametrize("args", [["fly"], ["run"], ["run", "b"], ["run", "b", "p", "--max-tokens", "0"], ["--no"]])
def test_a_wrong_command_line_exits_2(args):
    done = megrez(*args)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and done.stderr


@pytest.mark.parametrize(
    ("option", "said"), [("--help", ("run", "chat", "bench", "inspect", "eval")), ("--version", ())]
)
def test_help_and_version_load_nothing_heavy(option, said):
    code = (
        f"import sys; sys.argv = ['megrez', '{option}']\n"
        "from megrez.runtime.cli import main\n"
        "try: main()\n"
        f"finally: print(sorted({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("\n[]\n")
    assert all(verb in done.stdout for verb in said)


def test_a_reader_that_leaves_early_sees_no_complaint(bundle):
    process = subprocess.Popen(
        [sys.executable, MAIN, "run", str(bundle), "hi"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "SAYS": "x" * 300, "NAP": "0.005"},
    )
    assert process.stdout.read(1) == b"x"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait(timeout=30)


def interrupted(process: subprocess.Popen[str]) -> tuple[str, str]:
    assert process.stdout.read(1) == "x"
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=30)


def start_slow(*args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, MAIN, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SAYS": "x" * 300, "NAP": "0.02"},
    )


def test_ctrl_c_leaves_a_run_with_130_and_no_traceback(bundle):
    process = start_slow("run", bundle, "hi")
    _, stderr = interrupted(process)
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_ctrl_c_stops_one_answer_of_a_chat_and_the_next_line_is_asked(bundle):
    process = start_slow("chat", bundle, "--max-tokens", 100)
    process.stdin.write("one\n")
    process.stdin.flush()
    assert process.stdout.read(1) == "x"
    process.send_signal(signal.SIGINT)
    process.stdin.write("two\n")
    stdout, _ = process.communicate(timeout=30)
    answers = stdout.splitlines()
    assert process.returncode == 0
    assert len(answers) == 2
    assert len(answers[0]) < 99 and answers[1] == "x" * 100


def test_a_chat_remembers_until_told_to_start_anew(bundle):
    # CAPACITY holds the template and two short turns, not three.
    talk = "one\ntwo\n/new\nthree\nfour\n"
    done = megrez("chat", bundle, stdin=talk, CAPACITY="170")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n" * 4, "")
    full = megrez("chat", bundle, stdin="one\ntwo\nthree\nfour\nfive\nsix\nseven\neight\n", CAPACITY="170")
    assert full.returncode == 2
    assert "the context holds 170" in full.stderr and "/reset" in full.stderr


def test_stdin_loses_the_line_end_that_echo_added_and_no_more(bundle):
    def prompt_tokens(stdin: str) -> int:
        return json.loads(megrez("run", bundle, "-", "--raw", "--json", stdin=stdin).stdout)["prompt_tokens"]

    assert [prompt_tokens(text) for text in ("hi", "hi\n", "hi\n\n", " hi ")] == [2, 2, 3, 4]


def test_bytes_that_are_no_utf8_are_misuse(bundle):
    for verb in (["run", str(bundle), "-"], ["run", str(bundle), b"\xff"], ["chat", str(bundle)]):
        done = subprocess.run([sys.executable, MAIN, *verb], input=b"\xff\n", capture_output=True)
        assert done.returncode == 2, verb
        assert done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1


def test_a_terminal_without_the_character_shows_a_question_mark(bundle):
    env = {**os.environ, "SAYS": "a你", "PYTHONIOENCODING": "latin-1"}  # which Python reads as it starts
    done = subprocess.run([sys.executable, MAIN, "run", str(bundle), "hi"], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (0, "a?\n")


def test_a_chat_needs_a_template(base_bundle):
    assert_one_line_error(megrez("chat", base_bundle), 2, "no chat template")


def test_bench_writes_the_fields_promised_and_a_table(bundle, tmp_path):
    figures = tmp_path / "figures.json"
    done = megrez(
        "bench", bundle, "--prompt-tokens", 20, "--output-tokens", 5, "--repeat", 2, "--threads", 1,
        "--json-file", figures,
        NAP="0.01",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = json.loads(figures.read_text())
    assert sorted(measured) == [
        "bundle_bytes",
        "decode_bandwidth_share",
        "decode_step_s",
        "decode_tokens_per_s",
        "device",
        "engine_seconds",
        "environment",
        "kv_cache_bytes",
        "kv_cache_peak_share",
        "kv_cache_peak_tokens",
        "peak_rss_bytes",
        "prefill_compute_share",
        "prefill_tokens_per_s",
        "repetitions",
        "sequences_per_decode_step",
        "slots",
        "spread",
        "stopped",
        "threads",
        "ttft_s",
        "view",
        "warnings",
        "work",
        "workload",
    ]
    assert 50 < measured["decode_tokens_per_s"] <= 100
    assert 500 < measured["prefill_tokens_per_s"] <= 2000
    assert measured["bundle_bytes"] == sum(path.stat().st_size for path in bundle.iterdir())
    assert measured["peak_rss_bytes"] > 10 << 20
    assert (measured["threads"], measured["slots"]) == (1, 1)
    assert "tokens/s" in done.stdout and "MiB" in done.stdout


def test_bench_needs_no_tokenizer_but_room(make_bundle, monkeypatch, bundle):
    assert_one_line_error(megrez("bench", bundle, "--prompt-tokens", 999), 2, "do not fit the context of 400")


def test_bench_says_where_it_cannot_write(bundle, tmp_path):
    file = tmp_path / "no" / "f.json"
    done = megrez("bench", bundle, "--prompt-tokens", 2, "--output-tokens", 2, "--json-file", file)
    assert done.returncode == 1 and "cannot be written" in done.stderr


def test_inspect_tells_how_the_weights_are_quantised():
    found = Quantization(
        algorithm="gptq",
        projections="int4 block 128",
        sensitive="int8 per channel",
        inputs=None,
        activations=None,
        embedding=None,
        lm_head="int8 per channel",
        keeps_blocks=False,
        rotated=True,
    )
    text = Calibration(source="a.txt", sha256="0" * 64, samples=32, tokens=512, seed=None)
    assert quantization_line(None, None) == "no"
    assert quantization_line(found, text) == (
        "projections int4 block 128, the most sensitive int8 per channel, embedding not quantised, "
        "lm_head int8 per channel, rotated; gptq on 32 x 512 tokens of a.txt"
    )
    plain = dataclasses.replace(
        found, algorithm="rtn", sensitive="int4 block 128", inputs="fp8", keeps_blocks=True, rotated=False
    )
    assert quantization_line(plain, None) == (
        "projections int4 block 128, their inputs fp8 per tensor, embedding not quantised, lm_head int8 per channel, "
        "the checkpoint's own blocks kept; rtn"
    )


def test_inspect_shows_the_manifest_to_people_and_to_programs(bundle):
    shown = megrez("inspect", bundle)
    assert shown.returncode == 0
    assert all(said in shown.stdout for said in ("cpu-fp32", "llama", "64 tokens", "264, 261", "tokenizer.json"))
    assert json.loads(megrez("inspect", bundle, "--json").stdout) == json.loads((bundle / "manifest.json").read_text())
    (bundle / "model.onnx").write_text("Weights")
    assert_one_line_error(megrez("inspect", bundle, "--verify"), 1, "model.onnx has SHA-256")


def test_json_is_printed_wherever_the_option_stands_and_written_where_a_file_is_named(bundle, tmp_path):
    manifest, file = json.loads((bundle / "manifest.json").read_text()), tmp_path / "f.json"
    assert json.loads(megrez("inspect", "--json", bundle).stdout) == manifest
    shown = megrez("inspect", "--json-file", file, bundle)
    assert json.loads(file.read_text()) == manifest and "264, 261" in shown.stdout
    bench = ("bench", bundle, "--prompt-tokens", 2, "--output-tokens", 2, "--repeat", 1)
    measured = json.loads(megrez(*bench, "--json", "--json-file", file).stdout)
    assert measured == json.loads(file.read_text()) and measured["peak_rss_bytes"] > 0
    assert megrez("run", "--json-file", file, bundle, "hi", SAYS="hello").stdout == "hello\n"
    assert json.loads(file.read_text())["text"] == "hello"
