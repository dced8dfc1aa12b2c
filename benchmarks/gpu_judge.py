"""Figures of a device beside a CPU's: how far logits are off; do greedy ids differ only where two nearly tie?"""

from typing import Any

import numpy as np

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


def judge(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """found, expected: what gpu_probe.py wrote: logits of a prompt, greedy ids, and the logits that chose each id.

    Up to the first id that differs both read the same tokens. There the reference's logits of the two ids are compared:
    where they differ by no more than twice what any logit was off by, rounding alone may have turned the choice.
    """
    off = float(np.abs(found["logits"] - expected["logits"]).max())
    row: dict[str, Any] = {
        "logits_off": off / float(np.abs(expected["logits"]).max()),
        "ids_of": len(expected["ids"]),
        "gap": None,
        "near_tie": None,
    }
    same = np.array(found["ids"]) == np.array(expected["ids"])
    row["ids_equal"] = int(np.cumprod(same).sum())
    if not same.all():
        at = row["ids_equal"]
        chosen = expected["steps"][at]
        row["gap"] = float(chosen[expected["ids"][at]] - chosen[found["ids"][at]])
        row["near_tie"] = row["gap"] <= 2 * off
    return row


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
