"""Two results of `megrez bench` side by side; no winner is called where their repetitions overlap."""

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megrez.runtime.errors import UsageError

Result = dict[str, Any]
_ENVIRONMENT = ("bundle", "bundle_sha256", "target", "threads", "slots", "context", "model", "cpu", "cores", "python")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure: the medians of both, the second over the first, and which is better.

    better: "A" or "B"; None if the ranges of the repetitions overlap, or if either has one repetition only.
    """

    figure: str
    a: float
    b: float
    ratio: float
    better: str | None


def read_any_result(path: Path) -> Result:
    """What --json-file wrote, of any view; raises UsageError for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read ({error}): give a file that  megrez bench --json-file  wrote"
        ) from error
    if not isinstance(found, dict) or not {"view", "workload", "environment"} <= found.keys():
        raise UsageError(f"{path} is no result of this version's benchmark: write one with  megrez bench --json-file")
    return found


def read_result(path: Path) -> Result:
    """One that can be compared; raises UsageError for other views, and for a run that did not end."""
    found = read_any_result(path)
    if "repetitions" not in found:
        raise UsageError(f"{path} is of the view {found['view']}: compare results of latency or load")
    if found.get("stopped"):
        raise UsageError(f"{path} holds a part of a run only ({found['stopped']}): measure again")
    return found


def compare(a: Result, b: Result, names: tuple[str, str]) -> list[Row]:
    """One row per figure that both have; raises UsageError that names what their workloads differ in."""
    _check_alike(a, b, names)
    rows = []
    for figure in a["repetitions"][0] if a["repetitions"] else ():
        ours, theirs = ([one.get(figure) for one in found["repetitions"]] for found in (a, b))
        if ours and theirs and all(ours) and all(theirs):
            rows.append(_row(figure, ours, theirs))
    return rows


def _check_alike(a: Result, b: Result, names: tuple[str, str]) -> None:
    ours, theirs = ({"view": one["view"], "client": one.get("client"), **one["workload"]} for one in (a, b))
    faults = [
        f"{name} is {ours.get(name)} in {names[0]} and {theirs.get(name)} in {names[1]}"
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    ]
    if faults:
        raise UsageError(f"these runs cannot be compared: {'; '.join(faults)}: measure both in the same way")


def _row(figure: str, ours: list[float], theirs: list[float]) -> Row:
    a, b = statistics.median(ours), statistics.median(theirs)
    better = None
    if min(len(ours), len(theirs)) > 1:
        more = "A" if min(ours) > max(theirs) else "B" if min(theirs) > max(ours) else None
        less_is_better = not figure.endswith("_per_s")
        better = {"A": "B", "B": "A"}.get(more or "") if less_is_better else more
    return Row(figure=figure, a=a, b=b, ratio=b / a, better=better)


def differences(a: Result, b: Result) -> list[str]:
    """What the environments differ in, such as the bundle or the version of a library; short phrases."""
    ours, theirs = (_environment(one["environment"]) for one in (a, b))
    return [
        f"{name}: {ours.get(name)} in A, {theirs.get(name)} in B"
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    ]


def _environment(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found.get(name) for name in _ENVIRONMENT} | dict(found.get("versions") or {})


def comparison_table(rows: list[Row], differing: list[str]) -> str:
    """For people."""
    lines = [f"{'':<32}{'A':>12}{'B':>12}{'B / A':>9}"]
    for row in rows:
        verdict = f"{row.better} is better" if row.better else "no difference beyond the spread"
        lines.append(f"{row.figure:<32}{row.a:>12.4g}{row.b:>12.4g}{row.ratio:>9.3f}  {verdict}")
    return "\n".join([*lines, *(f"differs: {one}" for one in differing)])


def comparison_json(rows: list[Row], differing: list[str]) -> str:
    return json.dumps({"figures": [asdict(row) for row in rows], "differences": differing}, indent=2)
