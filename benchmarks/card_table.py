"""The speed table of Megrez-3B-Instruct's model card, measured here: its models by their config.json, random weights.

python benchmarks/card_table.py [--model Megrez-3B-Instruct ...] [--target cpu-int4] [--requests 1000] [--warmup N]
    [--layers N] [--compile-only]

Each model is compiled with --dummy-weights and measured with `megrez bench --preset megrez-card`. The card's "decode
speed" counts prompt and output tokens; README_SPEED of the same repository has the output tokens of three models. Both
were measured on one A100 with vLLM in BF16. MiniCPM-2B is in the Llama format that its authors publish too; MiniCPM3-4B
has another attention and cannot be compiled. --layers cuts all models alike: such speeds are not the card's.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from report import command_line

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
CONTEXT = 256
Row = dict[str, Any]
# Prompt and output tokens per second on the card, and output tokens per second in README_SPEED.
CARD: dict[str, tuple[float | None, float | None]] = {
    "Megrez-3B-Instruct": (2329.4, 1159.93),
    "Qwen2.5-3B": (2248.3, 1123.38),
    "Qwen2-1.5B": (3299.5, None),
    "MiniCPM-2B-llama-format": (1930.8, 978.96),
    "Yi-1.5-6B": (None, None),
    "Llama-3.1-8B": (None, None),
}
FIRST = "Megrez-3B-Instruct"
RATIOS = "ours / card", "ours / Megrez", "card / Megrez"


class Failed(Exception):
    """A command failed; the last line of its errors."""


def run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise Failed(lines[-1].removeprefix("error: ") if lines else f"exit code {done.returncode}")


def compiled(model: str, target: str, layers: int | None, cache: Path) -> Path:
    """The bundle, which an earlier run may have kept."""
    bundle = cache / f"{model}-{target}"
    if not (bundle / "manifest.json").exists():
        dummy = "--dummy-weights", "--algorithm", "rtn", "--context", CONTEXT
        cut = () if layers is None else ("--layers", layers)
        run(BIN / "megrez-compile", HERE / "card" / f"{model}.json", *dummy, "--target", target, *cut, "-o", bundle)
    return bundle


def measure(model: str, target: str, requests: int, warmup: int | None, layers: int | None, cache: Path) -> Row:
    """A model's result of `megrez bench`, or its error."""
    file = cache / f"{model}-{target}.json"
    try:
        bundle = compiled(model, target, layers, cache)
        warm = () if warmup is None else ("--warmup", warmup)
        options = "--preset", "megrez-card", "--requests", requests, *warm, "--json-file", file
        run(BIN / "megrez", "bench", bundle, *options)
    except Failed as failed:
        return {"model": model, "error": str(failed)}
    result: Row = json.loads(file.read_text(encoding="utf-8"))
    return {"model": model, "error": None, "result": result}


def table(rows: list[Row]) -> str:
    """In Markdown: our two rates, the card's, ours over the card's, and both relative to Megrez' own."""
    header = "model", "output tok/s", "prompt and output", "card: output", "card: both", *RATIOS
    lines = [header, ("---",) * len(header)]
    base = next(
        (row["result"]["total_tokens_per_s"] for row in rows if row["model"] == FIRST and not row["error"]), None
    )
    for row in rows:
        both, output = CARD[row["model"]]
        card = _cell(output), _cell(both)
        card_ratio = _cell(both / CARD[FIRST][0], 2) if both and CARD[FIRST][0] else ""
        if row["error"]:
            lines.append((row["model"], row["error"], "", *card, "", "", card_ratio))
            continue
        ours, total = (row["result"][name] for name in ("aggregate_output_tokens_per_s", "total_tokens_per_s"))
        ratio = _cell(total / both, 4) if both else ""
        relative = _cell(total / base, 2) if base else ""
        lines.append((row["model"], _cell(ours), _cell(total), *card, ratio, relative, card_ratio))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _cell(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


@click.command()
@click.option("--model", "models", type=click.Choice(tuple(CARD)), multiple=True, default=tuple(CARD))
@click.option("--target", default="cpu-int4", show_default=True)
@click.option("--requests", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--warmup", type=click.IntRange(min=0), help="Requests before them.  [default: the preset's 8]")
@click.option("--layers", type=click.IntRange(min=1), help="Cut all models.  [default: whole models]")
@click.option("--compile-only", is_flag=True, help="Compile and keep the bundles for a later run.")
@click.option("--keep", is_flag=True, help="Keep the bundles for another run.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path(".cache/card"), show_default=True)
def main(
    models: tuple[str, ...],
    target: str,
    requests: int,
    warmup: int | None,
    layers: int | None,
    compile_only: bool,
    keep: bool,
    cache: Path,
) -> None:
    """Print the table; results.json in the cache has every model's result."""
    cache.mkdir(parents=True, exist_ok=True)
    for model in models if compile_only else ():
        click.echo(compiled(model, target, layers, cache))
    if compile_only:
        return
    rows = []
    for model in models:
        click.echo(f"measuring {model}", err=True)
        rows.append(measure(model, target, requests, warmup, layers, cache))
        if not keep:
            shutil.rmtree(cache / f"{model}-{target}", ignore_errors=True)
        settings = {"target": target, "layers": layers, "requests": requests, "warmup": warmup}
        content = {"command": command_line("benchmarks/card_table.py", sys.argv[1:]), **settings, "rows": rows}
        (cache / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    click.echo(table(rows))


if __name__ == "__main__":
    main()
