"""`megrez bench` as a user meets it: modes, files, and runs that end early."""

import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from megrez.runtime.bench.haystack import make_needle
from megrez.runtime.bench.live import Live
from megrez.runtime.bench.table import load_table
from megrez.runtime.commands.bench import bench_command
from megrez.runtime.engines import MODULES
from megrez.runtime.errors import MegrezError
from megrez.runtime.session import FakeSession
from tests.forks import RUNTIME, forks
from tests.runtime.serving.http.servers import fake_llm, serving

MAIN = str(Path(__file__).parents[1] / "fake_main.py")
SMALL = "--prompt-tokens", 3, "--output-tokens", 4


def bench(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
    return forks(RUNTIME).run(MAIN, ["bench", *args], env=env)


def assert_one_line_error(done: subprocess.CompletedProcess[str], code: int, said: str) -> None:
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def bundle(make_bundle, byte_level, megrez_template) -> Path:
    return make_bundle(tokenizer=byte_level, template=megrez_template)


@pytest.fixture
def server(bundle):
    with serving(fake_llm(bundle)) as running:
        yield running


def test_many_requests_are_counted_exactly_and_all_promised_keys_are_there(bundle, tmp_path):
    file = tmp_path / "f.json"
    done = bench(bundle, "--concurrency", 3, "--requests", 5, "--repeat", 2, *SMALL, "--json-file", file)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert (found["view"], found["client"], found["stopped"]) == ("load", "in-process", None)
    assert (found["completed"], found["failed"]) == (10, 0)
    assert (found["prompt_tokens"], found["output_tokens"]) == (30, 40)
    rates = {"aggregate_output_tokens_per_s", "total_tokens_per_s", "requests_per_s", "output_tokens_per_s_per_user"}
    times = {
        f"{name}_{what}_s"
        for name in ("ttft", "itl", "tpot", "latency")
        for what in ("min", "avg", "p50", "p90", "p95", "p99", "max")
    }
    assert found.keys() >= rates | times | {"decode_bandwidth_share", "decode_step_s", "peak_rss_bytes"}
    assert found.keys() >= {"prefill_compute_share", "work", "itl_histogram", "warnings", "kv_cache_bytes", "device"}
    assert sum(found["itl_histogram"]["counts"]) == 10 * 3
    assert found["kv_cache_peak_tokens"] <= 3 * (3 + 4)
    assert found["device"].keys() >= {"energy_j", "throttled", "sensors", "sensors_absent"}
    assert found["environment"].keys() >= {
        "cpu", "cores", "threads", "versions", "bundle_sha256", "command", "load_average_before", "load_average_after",
        "memory_read_bytes_per_s", "float32_flops_per_s",
    }  # fmt: skip
    assert len(found["repetitions"]) == 2 and found["workload"]["concurrency"] == 3
    assert all(name in done.stdout for name in ("ttft", "itl", "tpot", "latency", "p99", "tokens/s"))


def test_drafted_tokens_are_counted_where_there_are_any(bundle):
    load = bundle, "--concurrency", 1, "--requests", 2, "--repeat", 1, "--prompt-tokens", 3, "--output-tokens", 40
    found = {}
    for options in ((), ("--speculate", "always")):
        done = bench(*load, *options, "--json", SAYS="abcabc")
        found[options] = json.loads(done.stdout)
    plain, drafted = found.values()
    assert plain["environment"]["speculate"] == "off" and plain["drafted_tokens"] == 0
    assert plain["output_tokens"] == drafted["output_tokens"] == 80
    assert drafted["drafted_tokens"] >= drafted["accepted_tokens"] > 40
    assert "drafted, accepted" in load_table(drafted) and "drafted" not in load_table(plain)


def test_the_card_is_compared_by_both_of_its_rates(make_bundle, manifest, byte_level):
    bundle = make_bundle(manifest=dataclasses.replace(manifest, context_length=256), tokenizer=byte_level)
    done = bench(bundle, "--preset", "megrez-card", "--requests", 2, "--json")
    found = json.loads(done.stdout)
    assert found["workload"]["preset"] == "megrez-card" and found["workload"]["temperature"] == 1.0
    assert (found["completed"], found["prompt_tokens"], found["output_tokens"]) == (2, 256, 256)
    assert found["card_output_ratio"] == found["aggregate_output_tokens_per_s"] / 1159.93
    assert found["card_total_ratio"] == found["total_tokens_per_s"] / 2329.4
    shown = load_table(found)
    assert "1159.9" in shown and "2329.4" in shown and "A100" in shown


@pytest.mark.parametrize("with_bundle", [True, False])
def test_a_server_is_measured_over_http(bundle, server, with_bundle):
    given = [bundle] if with_bundle else ["--dataset", bundle.parent / "d.jsonl", "--ignore-eos"]
    (bundle.parent / "d.jsonl").write_text('{"prompt": "abc"}\n')
    lengths = SMALL if with_bundle else SMALL[2:]
    done = bench(*given, "--url", server.url, "--concurrency", 2, "--requests", 3, "--repeat", 2, *lengths, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["client"], found["environment"]["model"]) == ("http", "tiny")
    assert (found["completed"], found["failed"], found["prompt_tokens"], found["output_tokens"]) == (6, 0, 18, 24)
    assert server.metric("vllm:generation_tokens_total") == 24 + 2 * 4  # and the warm-up's


def test_a_dataset_is_asked_as_chats_and_its_answers_tell_the_lengths(bundle, tmp_path, byte_level):
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello!"}]
    (tmp_path / "d.json").write_text(json.dumps([{"conversations": talk}]))
    done = bench(bundle, "--dataset", tmp_path / "d.json", "--chat", "--ignore-eos", "--requests", 2, "--json")
    found = json.loads(done.stdout)
    assert found["output_tokens"] == 3 * 2 * len(byte_level.encode("hello!").ids)
    assert found["prompt_tokens"] > 3 * 2 * 20  # the template's system message


@pytest.fixture
def engine(monkeypatch):
    """Opens FakeSession, or what it is told to, in this process."""
    module = types.ModuleType("fake_engine_of_test_bench")
    module.kind = FakeSession
    module.open_session = lambda bundle, *, threads, slots=1, capacity=None: module.kind(
        vocab_size=267, capacity=capacity or 64, slots=slots
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(MODULES, "fake", module.__name__)
    return module


def run_here(*args: object) -> None:
    bench_command.main([str(one) for one in args], prog_name="bench", standalone_mode=False)


def after(count: int, act: Callable[[], object]) -> Callable[[Live, object], object]:
    """In place of Live.note: acts once so many requests have ended."""
    ended = itertools.count(1)
    return lambda live, record: act() if next(ended) == count else None


def test_a_bundle_without_a_tokenizer_is_measured_with_random_prompts(make_bundle, engine, capsys):
    run_here(make_bundle(), "--concurrency", 2, "--requests", 3, "--repeat", 1, *SMALL, "--json")
    assert json.loads(capsys.readouterr().out)["output_tokens"] == 12


def test_ctrl_c_keeps_and_writes_what_was_measured(bundle, engine, tmp_path, monkeypatch, capsys):
    interrupt = after(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(Live, "note", interrupt)
    with pytest.raises(click.Abort):
        run_here(bundle, "--requests", 100_000, *SMALL, "--json-file", tmp_path / "f.json")
    found = json.loads((tmp_path / "f.json").read_text())
    assert 5 <= found["completed"] < 100_000 and found["stopped"] == "interrupted by Ctrl-C"
    assert found["output_tokens"] == 4 * found["completed"]
    said = capsys.readouterr()
    assert said.err == "interrupted by Ctrl-C: the figures are of what was complete by then\n"
    assert "tokens/s" in said.out


def test_ctrl_c_keeps_the_repetitions_of_a_bare_session(bundle, engine, tmp_path):
    class Interrupted(FakeSession):
        left = 4 * 3 + 2  # the warm-up and two repetitions of 4 steps, and a half

        def step(self, *batch, **named):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return super().step(*batch, **named)

    engine.kind = Interrupted
    with pytest.raises(click.Abort):
        run_here(bundle, "--repeat", 9, *SMALL, "--json-file", tmp_path / "f.json")
    found = json.loads((tmp_path / "f.json").read_text())
    assert len(found["repetitions"]) == 2 and found["stopped"] == "interrupted by Ctrl-C"


def test_before_anything_was_measured_ctrl_c_writes_nothing(bundle, engine, tmp_path):
    def interrupted(**shape):
        raise KeyboardInterrupt

    engine.kind = interrupted
    with pytest.raises(click.Abort):
        run_here(bundle, *SMALL, "--json-file", tmp_path / "f.json")
    assert not (tmp_path / "f.json").exists()


def test_a_server_that_dies_ends_the_run_with_one_line_and_what_was_measured(bundle, tmp_path, monkeypatch):
    command = [sys.executable, MAIN, "serve", str(bundle), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        url = re.search(r"http://[\d.:]+\d", process.stdout.readline())[0]
        monkeypatch.setattr(Live, "note", after(3, process.kill))
        with pytest.raises(MegrezError, match=f"the server at {url} stopped answering") as error:
            run_here(bundle, "--url", url, "--requests", 100_000, *SMALL, "--json-file", tmp_path / "f.json")
    assert "\n" not in str(error.value)
    found = json.loads((tmp_path / "f.json").read_text())
    assert 3 <= found["completed"] < 100_000 and found["stopped"].startswith("the server at")


def test_requests_that_fail_are_counted_by_their_reason(bundle, server, tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "abc"}) + "\n" + json.dumps({"prompt": "x" * 500}) + "\n")
    done = bench("--url", server.url, "--dataset", tmp_path / "d.jsonl", "--requests", 4, "--repeat", 1, *SMALL[2:])
    assert done.returncode == 0, done.stderr
    assert "failed 2 times: status 400 (the prompt has 500 tokens, the context holds 400" in done.stdout


def test_a_model_that_a_server_has_not_is_said_before_anything_is_measured(server):
    done = bench("--url", server.url, "--model", "gpt", "--requests", 4)
    assert_one_line_error(done, 1, "every request of the warm-up failed: status 404")


def test_two_results_are_compared_and_unlike_ones_refused(bundle, engine, tmp_path, capsys):
    a, b, c = (tmp_path / name for name in ("a.json", "b.json", "c.json"))
    for file, requests in ((a, 4), (b, 4), (c, 5)):
        run_here(bundle, "--requests", requests, *SMALL, "--json-file", file)
    capsys.readouterr()
    run_here("compare", a, b, "--json")
    done = capsys.readouterr().out
    medians = [json.loads(file.read_text())["requests_per_s"] for file in (a, b)]
    (row,) = [one for one in json.loads(done)["figures"] if one["figure"] == "requests_per_s"]
    assert (row["a"], row["b"], row["ratio"]) == (*medians, medians[1] / medians[0])
    run_here("compare", a, b)
    assert "B / A" in capsys.readouterr().out
    assert_one_line_error(bench("compare", a, c), 2, "requests is 4 in a.json and 5 in c.json")


def test_a_server_is_measured_over_its_unix_socket(bundle, tmp_path):
    command = [sys.executable, MAIN, "serve", str(bundle), "--uds", "s.sock"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path
    ) as process:
        try:
            address = re.search(r"unix:[\w.]+", process.stdout.readline())[0]
            assert address == "unix:s.sock"
            url = f"unix:{tmp_path / 's.sock'}"
            done = bench(bundle, "--url", url, "--requests", 3, "--repeat", 1, *SMALL, "--json")
        finally:
            process.kill()
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["completed"], found["output_tokens"], found["environment"]["url"]) == (3, 12, url)


@pytest.mark.parametrize(
    ("batches", "view"), [(("--concurrency", "1,3", "--requests", 4), "load"), (("--slots", "1,3"), "latency")]
)
def test_a_sweep_keeps_the_result_of_every_point(bundle, engine, tmp_path, capsys, batches, view):
    file = tmp_path / "sweep.json"
    lengths = "--prompt-tokens", "3,5", "--context", "32,64", "--output-tokens", 4
    run_here("sweep", bundle, *batches, *lengths, "--repeat", 2, "--json-file", file)
    found = json.loads(file.read_text())
    assert (found["view"], found["of"], found["stopped"]) == ("sweep", view, None)
    asked = [(one["context"], one["prompt"], one["batch"]) for one in found["points"]]
    assert asked == [(c, p, b) for c in (32, 64) for p in (3, 5) for b in (1, 3)]
    for one in found["points"]:
        workload = one["workload"]
        assert workload["prompt_tokens"] == str(one["prompt"])
        assert one["batch"] == workload["concurrency" if view == "load" else "slots"]
        assert one["environment"]["slots"] == one["batch"] and one["environment"]["context"] == one["context"]
    assert len(capsys.readouterr().out.splitlines()) == 9
    run_here("report", file, "-o", tmp_path / "report")
    assert "throughput" in capsys.readouterr().out if view == "load" else True
    assert (tmp_path / "report/report.md").exists()


def test_an_interrupted_sweep_keeps_its_points(bundle, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(Live, "note", after(6, lambda: os.kill(os.getpid(), signal.SIGINT)))
    with pytest.raises(click.Abort):
        run_here(
            "sweep", bundle, "--prompt-tokens", "3,5", "--output-tokens", 4, "--requests", 4, "--repeat", 1,
            "--json-file", tmp_path / "f.json",
        )  # fmt: skip
    found = json.loads((tmp_path / "f.json").read_text())
    assert [one["prompt"] for one in found["points"]] == [3, 5] and found["stopped"] == "interrupted by Ctrl-C"
    assert found["points"][0]["completed"] == 4 and found["points"][1]["completed"] < 4


def test_long_context_is_measured_from_128_tokens_to_all_of_it(make_bundle, manifest, byte_level, engine, tmp_path):
    bundle = make_bundle(manifest=dataclasses.replace(manifest, context_length=600), tokenizer=byte_level)
    run_here(bundle, "--preset", "long-context", "--context", 600, "--repeat", 2, "--json-file", tmp_path / "f.json")
    found = json.loads((tmp_path / "f.json").read_text())
    assert [one["length"] for one in found["points"]] == [128, 256, 512, 584]
    assert found["workload"]["preset"] == "long-context" and found["kv_cache_peak_share"] == 1.0


def test_needles_are_asked_for_at_every_length_and_depth(make_bundle, manifest, byte_level, megrez_template, tmp_path):
    large = dataclasses.replace(manifest, context_length=400)
    bundle = make_bundle(manifest=large, tokenizer=byte_level, template=megrez_template)
    answer = make_needle(0).answer
    done = bench(
        bundle, "--preset", "needle", "--lengths", "300,376", "--depths", "0,100", "--json", SAYS=f"It is {answer}."
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(one["length"], one["depth"], one["found"]) for one in found["cells"]] == [
        (300, 0.0, 1), (300, 1.0, 1), (376, 0.0, 1), (376, 1.0, 1)
    ]  # fmt: skip
    assert all(0 < one["prompt_tokens"][0] <= one["length"] for one in found["cells"])


def test_ctrl_c_keeps_the_lengths_until_then(make_bundle, manifest, byte_level, engine, tmp_path):
    class Interrupted(FakeSession):
        def step(self, tokens, starts, *batch, **named):
            if starts[0] >= 256:
                raise KeyboardInterrupt
            return super().step(tokens, starts, *batch, **named)

    engine.kind = Interrupted
    bundle = make_bundle(manifest=dataclasses.replace(manifest, context_length=600), tokenizer=byte_level)
    with pytest.raises(click.Abort):
        run_here(bundle, "--preset", "long-context", "--context", 600, "--json-file", tmp_path / "f.json")
    assert [one["length"] for one in json.loads((tmp_path / "f.json").read_text())["points"]] == [128]


def test_files_that_are_no_results_or_no_comparable_ones_are_refused(bundle, tmp_path):
    (tmp_path / "a.json").write_text("{}")
    assert_one_line_error(bench("report", tmp_path / "a.json"), 2, "is no result of this version's benchmark")
    result = {"view": "sweep", "workload": {}, "environment": {}, "spread": {}, "points": []}
    (tmp_path / "b.json").write_text(json.dumps(result))
    assert_one_line_error(bench("compare", tmp_path / "b.json", tmp_path / "b.json"), 2, "is of the view sweep")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "Missing argument 'BUNDLE'"),
        (("--prompt-tokens", "9:3"), "9:3 is no number of tokens"),
        (("B", "--lengths", "1,2"), "--lengths is for --preset needle and long-context"),
        (("B", "--preset", "needle", "--lengths", "1,x"), "1,x is no list of numbers"),
        (("B", "--preset", "needle", "--depths", "0,101"), "0,101 is no list of depths"),
        (
            ("B", "--preset", "needle", "--lengths", "390"),
            "a prompt of 390 tokens was asked for, the context holds 400",
        ),
        (("B", "--preset", "long-context", "--lengths", "390"), "choose lengths from 1 to 384"),
        (("B", "--preset", "long-context", "--depths", "0"), "--preset long-context fixes --depths"),
        (("B", "--preset", "needle", "--slots", "2"), "--preset needle fixes --slots"),
        (("--url", "http://127.0.0.1:1", "--preset", "needle"), "--preset needle measures a bundle"),
        (("--url", "unix:"), "names no socket"),
        (("sweep",), "Missing argument 'BUNDLE'"),
        (("sweep", "B", "--concurrency", "1;2"), "1;2 is no list of numbers"),
        (("sweep", "B", "--prompt-tokens", "16,60", "--output-tokens", "8"), "do not fit the context of 64"),
        (("sweep", "B", "--slots", "1", "--concurrency", "2"), "--slots measures a bare session"),
        (("sweep", "--url", "http://127.0.0.1:1", "--context", "64"), "--context is the server's own matter"),
        (("report", "no.json"), "no.json cannot be read"),
        (("report",), "Missing argument 'RESULT.json...'"),
        (("B", "--prompt-tokens", "3:9"), "a range of tokens needs several requests"),
        (("B", "--output-tokens", "1"), "give 2 or more"),
        (("B", "--concurrency", "2", "--prompt-tokens", "60"), "do not fit the context of 64"),
        (("B", "--preset", "megrez-card", "--concurrency", "2"), "--preset megrez-card fixes --concurrency"),
        (("B", "--concurrency", "2", "--ignore-eos"), "--ignore-eos is for --dataset"),
        (("B", "--dataset", "no.jsonl"), "the dataset no.jsonl cannot be read"),
        (("--url", "127.0.0.1:8000"), "is no address of a server"),
        (("--url", "http://127.0.0.1:1", "--slots", "2"), "--slots is the server's own matter"),
        (("--url", "http://127.0.0.1:1", "--draft", "B"), "--draft is the server's own matter"),
        (("B", "--speculate", "always"), "--speculate needs requests, a bare session drafts nothing"),
        (("compare", "a.json"), "Missing argument 'B.json'"),
    ],
)
def test_misuse_is_one_line(bundle, args, said):
    assert_one_line_error(bench(*(bundle if one == "B" else one for one in args)), 2, said)
