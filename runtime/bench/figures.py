"""From the timings of requests to the figures of a benchmark; knows neither who answered nor how.

TTFT: from sending a request to its first token. ITL: between two tokens, or between two chunks of a stream. TPOT: from
a request's first token to its last, per token after the first (aiperf calls this one "inter token latency"). Latency:
from sending a request to its last token.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TOO_WIDE = 0.05
# Figures of a repetition whose spread is reported, and which runs are compared by.
LOAD_FIGURES = (
    "aggregate_output_tokens_per_s",
    "total_tokens_per_s",
    "requests_per_s",
    "ttft_p50_s",
    "ttft_p99_s",
    "itl_p50_s",
    "itl_p99_s",
    "tpot_p50_s",
    "latency_p50_s",
)
# Those that say whether a run can be trusted; tails and first tokens vary on a quiet machine too.
HEADLINES = ("aggregate_output_tokens_per_s", "itl_p50_s", "prefill_tokens_per_s", "decode_tokens_per_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One request, timed in seconds of any clock.

    times: when each token came, or each chunk of a stream that had text. done: when the last token came.
    output_tokens: as the engine or the server's `usage` counts them, never chunks. error: why it failed.
    """

    sent: float
    done: float
    times: tuple[float, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None


Figures = dict[str, Any]


def summarise(records: Sequence[Record]) -> Figures:
    """The figures of one repetition, or of several that are pooled: seconds and tokens per second; None of nothing.

    Only completed requests count, over the time from the first that was sent to the last that ended.
    """
    good = [one for one in records if one.error is None]
    elapsed = max(one.done for one in good) - min(one.sent for one in good) if good else 0.0
    output, prompt = sum(one.output_tokens for one in good), sum(one.prompt_tokens for one in good)
    streamed = [one for one in good if one.times]
    several = [one for one in streamed if one.output_tokens > 1]
    tpot = [(one.done - one.times[0]) / (one.output_tokens - 1) for one in several]
    found: Figures = {
        "aggregate_output_tokens_per_s": output / elapsed if elapsed else 0.0,
        "total_tokens_per_s": (prompt + output) / elapsed if elapsed else 0.0,
        "requests_per_s": len(good) / elapsed if elapsed else 0.0,
        "output_tokens_per_s_per_user": statistics.fmean(1 / one for one in tpot if one) if any(tpot) else None,
        "completed": len(good),
        "failed": len(records) - len(good),
        "errors": dict(Counter(one.error for one in records if one.error is not None)),
        "elapsed_s": elapsed,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "cached_prompt_tokens": sum(one.cached_tokens for one in good),
        "chunks": sum(len(one.times) for one in good),
    }
    found |= distribution("ttft", [one.times[0] - one.sent for one in streamed])
    found |= distribution("itl", [gap for one in streamed for gap in np.diff(one.times).tolist()])
    found |= distribution("tpot", tpot)
    return found | distribution("latency", [one.done - one.sent for one in good])


def combine(repetitions: Sequence[Sequence[Record]]) -> Figures:
    """The figures of all repetitions: medians of the rates, distributions and counts over all requests together."""
    each = [summarise(records) for records in repetitions]
    found = summarise([one for records in repetitions for one in records])
    rates = [name for name in found if name.endswith("_per_s")]
    found |= {name: statistics.median(one[name] for one in each) for name in rates} if each else {}
    found["elapsed_s"] = sum(one["elapsed_s"] for one in each)
    kept = [{name: one[name] for name in LOAD_FIGURES} for one in each]
    gaps = [gap for records in repetitions for one in records if one.error is None for gap in np.diff(one.times)]
    return found | {"itl_histogram": histogram(gaps), "spread": spread(kept), "repetitions": kept}


def histogram(values: Sequence[float], bins: int = 60) -> Figures | None:
    """Counts between edges in seconds, which grow by a constant factor; None of nothing."""
    positive = [value for value in values if value > 0]
    if not positive:
        return None
    low, high = min(positive), max(positive)
    edges = np.geomspace(low, max(high, low * 1.001), bins + 1)
    counts, _ = np.histogram(np.clip(positive, edges[0], edges[-1]), edges)
    return {"edges_s": edges.tolist(), "counts": counts.tolist()}


def distribution(name: str, values: Sequence[float]) -> Figures:
    """Minimum, mean, percentiles (linearly interpolated) and maximum; None of nothing."""
    if not values:
        return {f"{name}_{what}_s": None for what in ("min", "avg", "p50", "p90", "p95", "p99", "max")}
    percentiles = np.percentile(values, (0, 50, 90, 95, 99, 100)).tolist()
    least, middle, p90, p95, p99, most = percentiles
    found = {"min": least, "avg": statistics.fmean(values), "p50": middle, "p90": p90, "p95": p95, "p99": p99}
    return {f"{name}_{what}_s": value for what, value in {**found, "max": most}.items()}


def spread(repetitions: Sequence[Figures]) -> dict[str, float]:
    """Of each figure: its largest value less its smallest, over its median; empty for less than two repetitions."""
    if len(repetitions) < 2:
        return {}
    columns = {name: [one[name] for one in repetitions] for name in repetitions[0]}
    return {
        name: (max(values) - min(values)) / statistics.median(values) for name, values in columns.items() if all(values)
    }


def spread_warning(found: dict[str, float], load_average: float | None) -> str | None:
    """One line where the repetitions differ by more than TOO_WIDE in a headline figure."""
    wide = {name: value for name, value in found.items() if name in HEADLINES and value > TOO_WIDE}
    if not wide:
        return None
    name = max(wide, key=lambda one: wide[one])
    busy = "" if load_average is None else f" (load average {load_average:.1f} before the run)"
    return (
        f"the spread is too wide to trust: {name} differs by {wide[name]:.0%} between repetitions{busy}; "
        "measure on a quiet machine, or longer"
    )
