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
    *(f"{key} {what}" for key in KEYS for what in ("tok/s", "ours / its", "best", "best, ours / its")),
    "MB read per token",
    "of bandwidth",
)


def summarise(rounds: list[dict[str, Figures]], read: dict[str, int], bandwidth: float) -> list[Figures]:
    """One row per runtime; `ours` is the median over rounds of our speed in a round over its own.

    Whoever else uses a machine's memory only ever slows a runtime down: its best round should be the nearest to its
    speed on a quiet one, and `best_ours` is the best of our rounds over the best of its.
    """
    first = next(iter(rounds[0]))
    rows = []
    for name in rounds[0]:
        row: Figures = {"name": name, "version": rounds[0][name]["version"], "bytes": rounds[0][name]["bytes"]}
        for key in KEYS:
            ours, speeds = ([figures[which][f"{key}_tokens_per_s"] for figures in rounds] for which in (first, name))
            row |= {
                key: statistics.median(speeds),
                f"{key}_rounds": speeds,
                f"{key}_ours": statistics.median(our / speed for our, speed in zip(ours, speeds, strict=True)),
                f"{key}_best": max(speeds),
                f"{key}_best_ours": max(ours) / max(speeds),
            }
        row |= {"bytes_per_token": read[name], "bandwidth_share": read[name] * row["decode"] / bandwidth}
        rows.append(row)
    return rows


def table(rows: list[Figures]) -> str:
    """In Markdown."""
    lines = [list(COLUMNS), ["---"] * len(COLUMNS)]
    for row in rows:
        speeds = (
            f"{row[key + what]:.{digits}f}"
            for key in KEYS
            for what, digits in (("", 1), ("_ours", 2), ("_best", 1), ("_best_ours", 2))
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


def write(path: Path, script: str, settings: Figures, rows: list[Figures], bandwidth: float) -> str:
    """path.md and path.json; returns the text of the former."""
    command = shlex.join(["python", script, *sys.argv[1:]])
    conditions = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
    text = f"{cpu_name()}, {bandwidth / 1e9:.1f} GB/s read; {conditions}\n\n{table(rows)}\n\n`{command}`\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    versions = {name: version(name) for name in ("megrez-compile", "onnxruntime", "numpy")}
    details: Figures = {
        "command": command,
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "versions": versions,
        "read_bandwidth": bandwidth,
        **settings,
        "results": rows,
    }
    path.with_suffix(".json").write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")
    return text
