"""benchmarks/aiperf_agreement.py: which figures of both tools are the same quantity, and their ratios."""

import aiperf_agreement as agreement


def test_both_tools_figures_are_in_the_same_units():
    ours = {"aggregate_output_tokens_per_s": 40.0, "ttft_p50_s": 0.25, "tpot_p50_s": 0.02, "itl_p50_s": 0.5}
    theirs = {
        "output_token_throughput": {"avg": 40.0},
        "time_to_first_token": {"unit": "ms", "p50": 250.0, "avg": 1.0},
        "inter_token_latency": {"unit": "ms", "p50": 20.0, "avg": 1.0},
    }
    assert agreement.bench_figures(ours) == agreement.aiperf_figures(theirs)
    assert agreement.bench_figures(ours) == {"output_tokens_per_s": 40.0, "ttft_p50_ms": 250.0, "itl_p50_ms": 20.0}


def test_ratios_are_of_medians_over_turns():
    def turn(client: str, value: float) -> dict:
        return {"client": client, "figures": dict.fromkeys(agreement.KEYS, value)}

    turns = [turn("megrez bench", one) for one in (10.0, 20.0, 90.0)] + [turn("aiperf", one) for one in (4.0, 5.0, 6.0)]
    rows = {row["name"]: row["output_tokens_per_s"] for row in agreement.summarise(turns)}
    assert rows == {"megrez bench": 20.0, "aiperf": 5.0, "aiperf over megrez bench": 0.25}
    lines = agreement.table(agreement.summarise(turns), 8).splitlines()
    assert lines[2] == "| megrez bench | 8 | 20.0 | 20.0 | 20.0 |"
    assert lines[4] == "| aiperf over megrez bench | 8 | 0.250 | 0.250 | 0.250 |"


def test_a_report_names_no_folder_of_the_run(tmp_path):
    (tmp_path / "x.json").write_text(f'{{"file": "{tmp_path}/aiperf-1/x"}}')
    assert agreement.read(tmp_path / "x.json", tmp_path) == {"file": "aiperf-1/x"}
