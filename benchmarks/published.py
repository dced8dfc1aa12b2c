"""The tables of docs/benchmarks/cpu.md, from results of benchmarks/speed.py.

python benchmarks/published.py docs/benchmarks/cpu-peers-smollm2.json
"""

import json
from pathlib import Path
from typing import Any

import click

COLUMNS = "runtime", "prefill tok/s", "decode tok/s", "ours over it: prefill", "decode", "MB a token, of bandwidth"


def table(found: dict[str, Any]) -> str:
    """In Markdown: medians, and ratios of ours, the first row, to each other with the quartiles over rounds."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    first = found["results"][0]["name"]
    for row in found["results"]:
        ratios = ["", ""] if row["name"] == first else [_ratio(row, key) for key in ("prefill", "decode")]
        size = f"{row['bytes_per_token'] / 1e6:.0f}"
        share = "" if row["bandwidth_share"] is None else f", {row['bandwidth_share']:.0%}"
        lines.append((row["name"], f"{row['prefill']:.1f}", f"{row['decode']:.1f}", *ratios, size + share))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _ratio(row: dict[str, Any], key: str) -> str:
    low, high = row[f"{key}_ours_quartiles"]
    return f"{row[f'{key}_ours']:.2f} ({low:.2f} to {high:.2f})"


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
def main(files: tuple[Path, ...]) -> None:
    """Print the table of each FILE, under the line that names it."""
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        click.echo(f"*From [{file.name}]({file.name}).*\n\n{table(found)}\n")


if __name__ == "__main__":
    main()
