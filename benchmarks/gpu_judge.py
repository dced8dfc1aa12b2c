"""Compares a device with a CPU: the largest error of logits, and whether greedy ids differ only at near-ties."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

COLUMNS = (
    "model",
    "target",
    "logits error",
    "greedy ids",
    "prefill 1",
    "decode 1",
    "8",
    "32",
    "of bandwidth",
    "error",
)


# Allowed error of logits, relative to the largest one. Float16 alone has 7e-4 on CPU kernels, see
# docs/benchmarks/cuda.md; where inputs are quantised too, one that rounds the other way affects all later values.
BOUND, BOUND_OF_QUANTIZED_INPUTS = 5e-3, 5e-2
QUANTIZED_INPUTS = ("trt-int8", "trt-fp8", "trt-nvfp4", "cpu-int8", "cpu-int4")


def compare(found: dict[str, Any], expected: dict[str, Any], target: str) -> dict[str, Any]:
    """found, expected: results of gpu_probe.py: logits of a prompt, greedy ids, logits of each greedy step and of a
    ragged batch. `error` in the row is None for a device that passed.

    Up to the first id that differs both read the same tokens. There the reference's logits of the two ids are compared:
    a difference of at most twice the error of logits is a near-tie, which rounding alone explains.
    """
    bound = BOUND_OF_QUANTIZED_INPUTS if target in QUANTIZED_INPUTS else BOUND
    largest = float(np.abs(expected["logits"]).max())
    same = np.array(found["ids"]) == np.array(expected["ids"])
    equal = int(np.cumprod(same).sum())
    same_tokens = slice(0, equal + 1)
    pairs = [(found["logits"], expected["logits"]), (found["steps"][same_tokens], expected["steps"][same_tokens])]
    if "ragged" in found:
        pairs.append((found["ragged"], expected["logits"][found["ragged_positions"]]))
    off = max(_off(*pair) / largest for pair in pairs)
    row: dict[str, Any] = {"logits_off": off, "ids_of": len(same), "ids_equal": equal, "gap": None, "near_tie": None}
    faults = [] if off <= bound else [f"logits are off by {off:.1e} of the largest, {bound:.0e} is allowed"]
    if equal < len(same):
        chosen = expected["steps"][equal]
        row["gap"] = float(chosen[expected["ids"][equal]] - chosen[found["ids"][equal]])
        row["near_tie"] = row["gap"] <= 2 * min(off, bound) * largest
        faults += [] if row["near_tie"] else [f"greedy id {equal} differs"]
    return {**row, "error": "; ".join(faults) or None}


def _off(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The largest difference; infinite where a value is not finite or missing."""
    if one.shape != other.shape or not np.isfinite(one).all():
        return float("inf")
    return float(np.abs(one - other).max())


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; speeds in tokens per second, summed over 1, 8 and 32 sequences."""
    lines = [list(COLUMNS), ["---"] * len(COLUMNS)]
    for row in rows:
        speeds = row.get("speed", {})
        decode = [f"{speeds[size]['decode']:.1f}" if size in speeds else "" for size in ("1", "8", "32")]
        lines.append(
            [
                row["model"],
                row["target"],
                f"{row['logits_off']:.2e}" if "logits_off" in row else "",
                _ids(row),
                f"{speeds['1']['prefill']:.0f}" if "1" in speeds else "",
                *decode,
                f"{row['bandwidth_share']:.0%}" if row.get("bandwidth_share") is not None else "",
                row["error"] or "",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _ids(row: dict[str, Any]) -> str:
    if "ids_equal" not in row:
        return ""
    if row["gap"] is None:
        return f"all {row['ids_of']} equal"
    verdict = "a near-tie" if row["near_tie"] else "WRONG"
    return f"{row['ids_equal']} of {row['ids_of']} equal, then a gap of {row['gap']:.1e}: {verdict}"
