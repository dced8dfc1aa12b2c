"""Figures of a device beside a CPU's: how far logits are off; do greedy ids differ only where two nearly tie?"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

COLUMNS = (
    "model",
    "target",
    "logits off by",
    "greedy ids",
    "prefill 1",
    "decode 1",
    "8",
    "32",
    "of bandwidth",
    "said",
)


# How far logits may be off, over the largest one. Float16 alone was off by 7e-4 on CPU kernels, see
# docs/benchmarks/cuda.md; where inputs are rounded too, one that is rounded the other way moves all that follows.
BOUND, BOUND_OF_ROUNDED_INPUTS = 5e-3, 5e-2
ROUNDED_INPUTS = ("trt-int8", "trt-fp8", "trt-nvfp4", "cpu-int8", "cpu-int4")


def judge(found: dict[str, Any], expected: dict[str, Any], target: str) -> dict[str, Any]:
    """found, expected: what gpu_probe.py wrote: logits of a prompt, greedy ids, the logits that chose each id, and
    those of a ragged batch. `said` tells what is wrong; it is None where nothing is.

    Up to the first id that differs both read the same tokens. There the reference's logits of the two ids are compared:
    where they differ by no more than twice what a logit may be off by, rounding alone may have turned the choice.
    """
    bound = BOUND_OF_ROUNDED_INPUTS if target in ROUNDED_INPUTS else BOUND
    largest = float(np.abs(expected["logits"]).max())
    same = np.array(found["ids"]) == np.array(expected["ids"])
    equal = int(np.cumprod(same).sum())
    alike = slice(0, equal + 1)
    pairs = [(found["logits"], expected["logits"]), (found["steps"][alike], expected["steps"][alike])]
    if "ragged" in found:
        pairs.append((found["ragged"], expected["logits"][found["ragged_positions"]]))
    off = max(_off(*pair) / largest for pair in pairs)
    row: dict[str, Any] = {"logits_off": off, "ids_of": len(same), "ids_equal": equal, "gap": None, "near_tie": None}
    faults = [] if off <= bound else [f"logits are off by {off:.1e} of the largest, {bound:.0e} is allowed"]
    if equal < len(same):
        chosen = expected["steps"][equal]
        row["gap"] = float(chosen[expected["ids"][equal]] - chosen[found["ids"][equal]])
        row["near_tie"] = row["gap"] <= 2 * min(off, bound) * largest
        faults += [] if row["near_tie"] else [f"greedy id {equal} is another one"]
    return {**row, "said": "; ".join(faults) or None}


def _off(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The largest difference; infinite where a number is not finite or one is missing."""
    if one.shape != other.shape or not np.isfinite(one).all():
        return float("inf")
    return float(np.abs(one - other).max())


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; speeds are tokens a second of all sequences together, at 1, 8 and 32 of them."""
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
                f"{row['bandwidth_share']:.0%}" if "bandwidth_share" in row else "",
                row["said"] or "",
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
