"""A report of every view; the points of its pictures are those of the results."""

import builtins
import struct

import pytest

from megrez.runtime.bench.report import curves, draw, histograms, roofline_points, write_report
from megrez.runtime.bench.warnings import warnings_of
from megrez.runtime.errors import MissingExtraError

ENVIRONMENT = {
    "cpu": "AMD EPYC", "command": "megrez bench B", "versions": {"numpy": "2.4.6"}, "load_average_before": 0.1,
    "memory_read_bytes_per_s": 2e10, "float32_flops_per_s": 1e11, "threads": 2,
}  # fmt: skip
WORK = {"flops_per_s": 3e9, "flops_per_byte": 0.5, "read_bytes_per_s": 6e9}
TIMES = {
    f"{name}_{what}_s": 0.1
    for name in ("ttft", "itl", "tpot", "latency")
    for what in ("min", "avg", "p50", "p90", "p95", "p99", "max")
}


def load(rate: float, each: float | None) -> dict:
    return {
        **TIMES, "view": "load", "aggregate_output_tokens_per_s": rate, "output_tokens_per_s_per_user": each,
        "total_tokens_per_s": 2 * rate, "requests_per_s": 1.0, "completed": 4, "failed": 0, "errors": {},
        "prompt_tokens": 8, "output_tokens": 8, "cached_prompt_tokens": 0, "spread": {"itl_p50_s": 0.01},
        "itl_histogram": {"edges_s": [0.01, 0.02, 0.04], "counts": [3, 1]}, "stopped": None,
        "work": {"decode": WORK, "prefill": None}, "workload": {}, "environment": ENVIRONMENT,
    }  # fmt: skip


SWEEP = {
    "view": "sweep", "of": "load", "stopped": "batch 8, prompt 16: too large", "spread": {}, "workload": {},
    "environment": ENVIRONMENT,
    "points": [{"batch": b, "prompt": 16, "context": None, **load(10.0 * b, 10.0 - b)} for b in (1, 4)],
}  # fmt: skip
LONG = {
    "view": "long-context", "spread": {}, "stopped": None, "workload": {}, "environment": ENVIRONMENT,
    "step_s_without_cache": 0.01, "step_s_per_cached_token": 1e-6, "work": {"decode": WORK},
    "points": [{"length": n, "decode_step_s": n / 1e5, "decode_tokens_per_s": 1e5 / n, "prefill_tokens_per_s": 9.0,
                "spread": None} for n in (128, 256)],
}  # fmt: skip
NEEDLE = {
    "view": "needle", "spread": {}, "stopped": None, "workload": {}, "environment": {**ENVIRONMENT},
    "cells": [{"length": n, "depth": d, "found": n < 200, "of": 1} for n in (100, 200) for d in (0.0, 1.0)],
}  # fmt: skip
RESULTS = {"one": load(9.0, 3.0), "sweep": SWEEP, "long": LONG, "needle": NEEDLE}


def test_every_picture_is_a_png_and_is_in_the_text(tmp_path):
    said = write_report(RESULTS, tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text()
    pictures = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert pictures == {
        "throughput-latency.png", "itl.png", "decode-cost.png", "needle-needle.png",
        "roofline-one.png", "roofline-sweep.png", "roofline-long.png",
    }  # fmt: skip
    for name in pictures:
        head = (tmp_path / "report" / name).read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", head[16:]) > (100, 100)
        assert f"({name})" in text and name in said
    assert "| 4 | 16 | - | 40.0 | 6.0 |" in text and "| 128 | 1.28 |" in text
    assert "**Stopped early:** batch 8, prompt 16: too large" in text
    assert "megrez bench B" in text and "AMD EPYC" in text and "numpy 2.4.6" in text


def test_the_curve_has_a_point_per_batch_and_the_histogram_every_run():
    assert curves(RESULTS) == {"sweep: prompt 16": [(1, 10.0, 9.0), (4, 40.0, 6.0)]}
    assert set(histograms(RESULTS)) == {"one", "sweep 1 x 16", "sweep 4 x 16"}
    assert roofline_points(SWEEP) == {"decode 1 x 16": WORK, "decode 4 x 16": WORK}
    assert roofline_points(NEEDLE) == {}


def test_what_a_picture_needs_and_a_result_lacks_leaves_it_out(tmp_path):
    bare = {**load(1.0, None), "itl_histogram": None, "work": {}}
    assert draw({"bare": bare}, tmp_path) == []
    assert write_report({"bare": bare}, tmp_path).endswith("report.md, with no picture")


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    imported = builtins.__import__

    def refuse(name, *args):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return imported(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"pip install 'megrez-compile\[report\]'"):
        write_report(RESULTS, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_warnings_are_of_spread_throttling_and_chunks():
    fine = {"spread": {"itl_p50_s": 0.04}, "environment": {"load_average_before": 3.0}, "device": {"throttled": []}}
    assert warnings_of(fine) == []
    wide, hot, chunked = warnings_of(
        fine
        | {"spread": {"itl_p50_s": 0.06}, "device": {"throttled": ["power cap"]}}
        | {"client": "http", "chunks": 10, "output_tokens": 40}
    )
    assert "itl_p50_s differs by 6%" in wide and "load average 3.0" in wide
    assert "clocks were lowered during the run (power cap)" in hot
    assert "40 tokens in 10 chunks" in chunked
    points = {**fine, "points": [{"device": {"throttled": ["thermal, by hardware"]}}, {}]}
    assert "thermal, by hardware" in warnings_of(points)[0]
