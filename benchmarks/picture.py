"""The picture of a result of benchmarks/speed.py: prefill and decode of every runtime, as bars.

python benchmarks/picture.py docs/benchmarks/cpu-peers-smollm2.json   # writes the .png beside it
"""

import json
from pathlib import Path

import click
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
def main(files: tuple[Path, ...]) -> None:
    """Write FILE.png for each FILE.json."""
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        rows = found["results"][::-1]
        figure = Figure(figsize=(9, 1 + 0.45 * len(rows)), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, key in zip(figure.subplots(1, 2, sharey=True), ("prefill", "decode"), strict=True):
            bars = axes.barh([row["name"] for row in rows], [row[key] for row in rows])
            bars[-1].set_color("tab:orange")  # ours, with its defaults
            axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
            axes.set_xlabel(f"{key}, tokens/s")
            axes.margins(x=0.15)
        figure.suptitle(f"{found.get('model', '')}, prompt of {found['prompt_tokens']}, {found['threads']} threads")
        figure.savefig(file.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
