"""What was measured, as rows, as a table and as files that say on what and how."""

import json
import platform
import shlex
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
KEYS = "prefill", "decode"
COLUMNS = (
    "runtime",
    "version",
    *(f"{key} {what}" for key in KEYS for what in ("tok/s", "ours / its", "quiet tok/s", "quiet, ours / its")),
    "MB read per token",
    "of bandwidth",
)


def summarise(rounds: list[dict[str, Figures]], quiet: list[bool]) -> dict[str, Figures]:
    """By name a row of medians over all rounds and, under `…_quiet`, over the quiet ones: None where there are none.

    `ours` is the median over rounds of our speed, which is that of the first name, over its own in the same round.
    """
    first = next(iter(rounds[0]))
    chosen = {"": rounds, "_quiet": [figures for figures, is_quiet in zip(rounds, quiet, strict=True) if is_quiet]}
    rows: dict[str, Figures] = {name: {"name": name} for name in rounds[0]}
    for name, row in rows.items():
        for key in KEYS:
            for which, used in chosen.items():
                ours, speeds = ([figures[one][f"{key}_tokens_per_s"] for figures in used] for one in (first, name))
                row[f"{key}{which}"] = _median(speeds)
                row[f"{key}_ours{which}"] = _median([our / speed for our, speed in zip(ours, speeds, strict=True)])
            row[f"{key}_rounds"] = [figures[name][f"{key}_tokens_per_s"] for figures in rounds]
    return rows


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def table(rows: list[Figures]) -> str:
    """In Markdown."""
    lines = [list(COLUMNS), ["---"] * len(COLUMNS)]
    for row in rows:
        speeds = (
            "–" if row[key + what] is None else f"{row[key + what]:.{digits}f}"
            for key in KEYS
            for what, digits in (("", 1), ("_ours", 2), ("_quiet", 1), ("_ours_quiet", 2))
        )
        size, share = f"{row['bytes_per_token'] / 1e6:.0f}", f"{row['bandwidth_share']:.0%}"
        lines.append([row["name"], row["version"], *speeds, size, share])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def fidelity_table(found: dict[str, Figures], peers: dict[str, tuple[str, ...]]) -> tuple[str, dict[str, float]]:
    """In Markdown, and by name of ours its mean KL over that of the best of its peers; both only where measured."""
    lines = ["| build | KL mean | KL p99 | top-1 | perplexity | float32's | KL, ours / best peer's |"]
    lines.append("|---|---|---|---|---|---|---|")
    ratios: dict[str, float] = {}
    for name, row in found.items():
        theirs = [found[peer]["kl_mean"] for peer in peers.get(name, ()) if peer in found]
        if theirs:
            ratios[name] = row["kl_mean"] / min(theirs)
        cells = f"{row['kl_mean']:.4f} | {row['kl_p99']:.3f} | {row['top1_agreement']:.4f} | {row['perplexity']:.3f}"
        ratio = f"{ratios[name]:.2f}" if name in ratios else ""
        lines.append(f"| {name} | {cells} | {row['reference_perplexity']:.3f} | {ratio} |")
    return "\n".join(lines), ratios


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write(path: Path, script: str, settings: Figures, rows: list[Figures], bandwidths: list[list[float]]) -> str:
    """path.md and path.json; returns the text of the former. bandwidths: bytes per second, by round."""
    command = shlex.join(["python", script, *sys.argv[1:]])
    conditions = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
    lowest, middle, highest = (
        f(value for read in bandwidths for value in read) / 1e9 for f in (min, statistics.median, max)
    )
    memory = f"memory read at {lowest:.1f} to {highest:.1f} GB/s, median {middle:.1f}"
    text = f"{cpu_name()}; {memory}; {conditions}\n\n{table(rows)}\n\n`{command}`\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    versions = {name: version(name) for name in ("megrez-compile", "onnxruntime", "numpy")}
    details: Figures = {
        "command": command,
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "versions": versions,
        **settings,
        "read_bandwidths": bandwidths,
        "results": rows,
    }
    path.with_suffix(".json").write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")
    return text
