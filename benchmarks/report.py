"""Benchmark results as rows, as a table, and as files with machine, versions and command."""

import json
import platform
import re
import shlex
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
KEYS = "prefill", "decode"
COLUMNS = (
    "runtime",
    "version",
    *(f"{key} {what}" for key in KEYS for what in ("tok/s", "ours / its", "half of the rounds")),
    "MB read per token",
    "of bandwidth",
)


def summarise(rounds: list[dict[str, Figures]]) -> dict[str, Figures]:
    """A row per name: medians over rounds of its speeds and of the ratios of ours to its in the same round, with their
    quartiles. Ours is the first name.
    """
    first = next(iter(rounds[0]))
    rows: dict[str, Figures] = {name: {"name": name} for name in rounds[0]}
    for name, row in rows.items():
        for key in KEYS:
            ours, speeds = ([figures[one][f"{key}_tokens_per_s"] for figures in rounds] for one in (first, name))
            ratios = [our / speed for our, speed in zip(ours, speeds, strict=True)]
            quarters = statistics.quantiles(ratios, n=4, method="inclusive")
            row |= {key: statistics.median(speeds), f"{key}_ours": quarters[1], f"{key}_rounds": speeds}
            row[f"{key}_ours_quartiles"] = quarters[0], quarters[2]
    return rows


def table(rows: list[Figures]) -> str:
    """In Markdown."""
    lines = [list(COLUMNS), ["---"] * len(COLUMNS)]
    for row in rows:
        speeds = []
        for key in KEYS:
            low, high = row[f"{key}_ours_quartiles"]
            speeds += [f"{row[key]:.1f}", f"{row[f'{key}_ours']:.2f}", f"{low:.2f} to {high:.2f}"]
        size = f"{row['bytes_per_token'] / 1e6:.0f}"
        share = "" if row["bandwidth_share"] is None else f"{row['bandwidth_share']:.0%}"
        lines.append([row["name"], row["version"], *speeds, size, share])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def fidelity_table(found: dict[str, Figures], peers: dict[str, tuple[str, ...]]) -> tuple[str, dict[str, float]]:
    """In Markdown; and, by name of ours, the ratio of its mean KL to its best peer's, where both are measured."""
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


def command_line(script: str, arguments: Sequence[str]) -> str:
    """The command without the folders of this machine: the last name of each absolute path."""
    return shlex.join(["python", script, *(re.sub(r"(^|=)/(?:[^/]+/)*", r"\1", one) for one in arguments)])


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write(path: Path, script: str, settings: Figures, rows: list[Figures], bandwidths: list[list[float]]) -> str:
    """Write path.md and path.json; returns the former's text. bandwidths: bytes per second, by round."""
    command = command_line(script, sys.argv[1:])
    conditions = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
    lowest, middle, highest = (
        f(value for read in bandwidths for value in read) / 1e9 for f in (min, statistics.median, max)
    )
    memory = f"memory read at {lowest:.1f} to {highest:.1f} GB/s, median {middle:.1f}"
    text = f"{cpu_name()}; {memory}; {conditions}\n\n{table(rows)}\n\n`{command}`\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{path}.md").write_text(text, encoding="utf-8")
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
    Path(f"{path}.json").write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")
    return text
