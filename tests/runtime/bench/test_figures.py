"""Exact figures of requests whose times are given."""

import pytest

from megrez.runtime.bench.figures import Record, combine, distribution, spread, spread_warning, summarise

ONE = Record(sent=10, done=14, times=(11, 12, 14), prompt_tokens=5, output_tokens=3)
TWO = Record(sent=11, done=18, times=(14, 18), prompt_tokens=7, output_tokens=2, cached_tokens=4)
FAILED = Record(sent=5, done=90, error="status 429 (full)")


def test_rates_are_over_the_time_from_the_first_request_to_the_last_token_of_those_that_ended():
    found = summarise([ONE, TWO, FAILED])
    assert found["elapsed_s"] == 8
    assert found["aggregate_output_tokens_per_s"] == 5 / 8
    assert found["total_tokens_per_s"] == 17 / 8
    assert found["requests_per_s"] == 2 / 8
    assert (found["completed"], found["failed"], found["errors"]) == (2, 1, {"status 429 (full)": 1})
    assert (found["prompt_tokens"], found["output_tokens"], found["cached_prompt_tokens"]) == (12, 5, 4)


def test_ttft_itl_tpot_and_latency_of_each_request():
    found = summarise([ONE, TWO])
    assert (found["ttft_min_s"], found["ttft_avg_s"], found["ttft_max_s"]) == (1, 2, 3)
    assert (found["itl_min_s"], found["itl_p50_s"], found["itl_max_s"]) == (1, 2, 4)  # gaps 1, 2 and 4
    assert (found["tpot_min_s"], found["tpot_max_s"]) == (1.5, 4)
    assert (found["latency_min_s"], found["latency_avg_s"], found["latency_max_s"]) == (4, 5.5, 7)
    assert found["output_tokens_per_s_per_user"] == (1 / 1.5 + 1 / 4) / 2


def test_tokens_are_those_of_usage_where_chunks_hold_several():
    chunked = Record(sent=0, done=6, times=(2, 6), prompt_tokens=1, output_tokens=9)
    found = summarise([chunked])
    assert found["aggregate_output_tokens_per_s"] == 9 / 6 and found["tpot_p50_s"] == 0.5
    assert found["itl_p50_s"] == 4 and found["chunks"] == 2


def test_percentiles_are_linear_between_values():
    found = distribution("x", list(range(101)))
    assert [found[f"x_{one}_s"] for one in ("min", "avg", "p50", "p90", "p95", "p99", "max")] == [
        0, 50, 50, 90, 95, 99, 100,
    ]  # fmt: skip
    assert distribution("x", [1, 2])["x_p90_s"] == pytest.approx(1.9)


def test_of_nothing_rates_are_zero_and_times_unknown():
    for records in ([], [FAILED]):
        found = summarise(records)
        assert found["aggregate_output_tokens_per_s"] == 0 and found["output_tokens_per_s_per_user"] is None
        assert found["ttft_p50_s"] is found["itl_p99_s"] is found["latency_max_s"] is None
    single = summarise([Record(sent=0, done=1, times=(1,), output_tokens=1)])
    assert single["itl_p50_s"] is single["tpot_p50_s"] is None and single["ttft_p50_s"] == 1


def test_repetitions_give_medians_of_rates_and_pool_their_requests():
    def repetition(seconds: float) -> list[Record]:
        return [Record(sent=0, done=seconds, times=(1, seconds), prompt_tokens=2, output_tokens=8)]

    found = combine([repetition(2), repetition(4), repetition(8)])
    assert found["aggregate_output_tokens_per_s"] == 2 and found["total_tokens_per_s"] == 2.5
    assert (found["elapsed_s"], found["completed"]) == (14, 3)
    assert (found["latency_p50_s"], found["latency_max_s"]) == (4, 8)
    assert [one["aggregate_output_tokens_per_s"] for one in found["repetitions"]] == [4, 2, 1]
    assert found["spread"]["aggregate_output_tokens_per_s"] == 1.5 and found["spread"]["ttft_p50_s"] == 0


def test_one_repetition_has_no_spread():
    assert combine([[ONE]])["spread"] == {} and spread_warning({}, 9.0) is None


def test_a_wide_spread_of_a_headline_is_said_in_one_line_with_the_load():
    assert spread([{"a": 100, "b": None}, {"a": 104, "b": 1}]) == {"a": 4 / 102}
    narrow = {"aggregate_output_tokens_per_s": 0.049, "ttft_p99_s": 3.0}
    assert spread_warning(narrow, 0.1) is None
    said = spread_warning({**narrow, "itl_p50_s": 0.06, "decode_tokens_per_s": 0.31}, 7.25)
    assert said is not None and "\n" not in said
    assert "decode_tokens_per_s differs by 31%" in said and "load average 7.2" in said
