import json

import pytest

from megrez.runtime.bench.compare import compare, comparison_table, differences, read_result
from megrez.runtime.bench.figures import Record, combine
from megrez.runtime.errors import UsageError


def result(*rates: float, first_token: float = 0.5, **workload) -> dict:
    repetitions = [{"aggregate_output_tokens_per_s": rate, "ttft_p50_s": first_token} for rate in rates]
    return {
        "view": "load",
        "client": "in-process",
        "repetitions": repetitions,
        "workload": {"prompt_tokens": "128", "concurrency": 8, **workload},
        "environment": {"bundle": "a", "threads": 2, "versions": {"numpy": "2.0"}},
    }


def verdicts(a: dict, b: dict) -> dict[str, tuple[float, str | None]]:
    return {row.figure: (row.ratio, row.better) for row in compare(a, b, ("A", "B"))}


def test_the_ratio_is_of_medians_and_the_better_one_is_beyond_all_repetitions_of_the_other():
    found = verdicts(result(100, 110, 104), result(130, 125, 156))
    assert found["aggregate_output_tokens_per_s"] == (1.25, "B")
    assert verdicts(result(130, 125), result(100, 110))["aggregate_output_tokens_per_s"][1] == "A"


def test_less_time_is_better():
    assert verdicts(result(1, 1, first_token=0.5), result(1, 1, first_token=0.25))["ttft_p50_s"] == (0.5, "B")
    assert verdicts(result(1, 1, first_token=0.25), result(1, 1, first_token=0.5))["ttft_p50_s"] == (2, "A")


def test_no_winner_is_called_inside_the_spread_or_without_one():
    assert verdicts(result(100, 120), result(119, 150))["aggregate_output_tokens_per_s"][1] is None
    assert verdicts(result(100), result(500))["aggregate_output_tokens_per_s"] == (5, None)
    table = comparison_table(compare(result(100), result(500), ("A", "B")), ["threads: 2 in A, 4 in B"])
    assert "no difference beyond the spread" in table and "is better" not in table
    assert table.endswith("differs: threads: 2 in A, 4 in B")


def test_unlike_runs_are_refused_by_what_they_differ_in():
    with pytest.raises(UsageError, match=r"prompt_tokens is 128 in a\.json and 1024 in b\.json") as found:
        compare(result(1), result(1, prompt_tokens="1024", concurrency=1), ("a.json", "b.json"))
    assert "concurrency is 8 in a.json and 1 in b.json" in str(found.value) and "\n" not in str(found.value)
    for name, value in (("view", "latency"), ("client", "http")):
        with pytest.raises(UsageError, match=f"{name} is"):
            compare(result(1), result(1) | {name: value}, ("A", "B"))


def test_what_the_environments_differ_in_is_named():
    other = result(1)
    other["environment"] = {"bundle": "b", "threads": 2, "versions": {"numpy": "2.1", "tokenizers": "1"}}
    assert differences(result(1), other) == [
        "bundle: a in A, b in B",
        "numpy: 2.0 in A, 2.1 in B",
        "tokenizers: None in A, 1 in B",
    ]


def test_a_figure_that_one_of_them_lacks_is_left_out():
    single = combine([[Record(sent=0, done=1, times=(1,), output_tokens=1)]])
    found = {**result(), "repetitions": single["repetitions"]}
    assert {row.figure for row in compare(found, found, ("A", "B"))} == {
        "aggregate_output_tokens_per_s", "total_tokens_per_s", "requests_per_s", "ttft_p50_s", "ttft_p99_s",
        "latency_p50_s",
    }  # fmt: skip


def test_files_that_are_no_whole_result_are_refused(tmp_path):
    path = tmp_path / "a.json"
    for text, said in (
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "is no result"),
        ('{"decode_tokens_per_s": 3}', "is no result"),
        (json.dumps({**result(1), "stopped": "interrupted by Ctrl-C"}), "a part of a run only"),
    ):
        if text is not None:
            path.write_text(text)
        with pytest.raises(UsageError, match=said):
            read_result(path)
    path.write_text(json.dumps({**result(1), "stopped": None}))
    assert read_result(path)["repetitions"] == result(1)["repetitions"]
