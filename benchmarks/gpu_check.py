"""Every target that this machine's GPU takes, built, held to a CPU and timed: one JSON file and one table.

python benchmarks/gpu_check.py [--model tiny …] [--target trt-fp16 …] [--minutes 9] [--cache FOLDER]

Models are random weights in the shapes of a tiny Llama, SmolLM2-135M and Megrez-3B. The reference is the float32
bundle for trt-fp16, and for the others the staged graph, quantised alike, both on ONNX Runtime's CPU kernels; Megrez's
shape is timed only. What is done is kept in FOLDER: a run that stops after --minutes is taken up by the next one.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from megrez.engines.targets import TARGETS

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
CONTEXT = 1024
COMMON = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5, "head_dim": 64}
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
        "tie_word_embeddings": False,
    },
    "smollm2": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "megrez": {
        "hidden_size": 2560,
        "intermediate_size": 7168,
        "num_hidden_layers": 32,
        "num_attention_heads": 40,
        "num_key_value_heads": 10,
        "vocab_size": 122880,
        "tie_word_embeddings": False,
    },
}
TIMED_ONLY = "megrez"
COLUMNS = ("model", "target", "logits off by", "ids equal", "prefill 1", "decode 1", "8", "32", "of bandwidth", "said")


def run(*command: object) -> str | None:
    """The last line that a failed command said, None after success."""
    done = subprocess.run([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return None if done.returncode == 0 else (lines[-1] if lines else f"exit code {done.returncode}")


def build(model: str, target: str, output: Path, *options: object) -> str | None:
    config = output.with_name(f"{model}.json")
    config.write_text(json.dumps({**COMMON, **MODELS[model], "max_position_embeddings": CONTEXT}), encoding="utf-8")
    command = (BIN / "megrez-compile", config, "--dummy-weights", "--target", target, "--context", CONTEXT)
    return run(*command, *options, "-o", output)


def reference(model: str, target: str, folder: Path) -> dict[str, Any] | None:
    """Logits and ids on the CPU; None where nothing here computes them."""
    if model == TIMED_ONLY or target == "trt-nvfp4":
        return None
    exact = not target.startswith("trt-") or target == "trt-fp16"
    options: tuple[object, ...] = () if exact else ("--stage", "onnx")
    folder.mkdir()
    said = build(model, "cpu-fp32" if exact else target, folder / "bundle", *options)
    said = said or run(sys.executable, HERE / "gpu_probe.py", folder / "bundle", folder, "--output-tokens", 2)
    if said is not None:
        raise click.ClickException(f"the reference of {model} {target} failed: {said}")
    return read_probe(folder)


def read_probe(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "probe.json").read_text(encoding="utf-8"))
    return {**found, "logits": np.load(folder / "logits.npy")}


def check(model: str, target: str, batches: tuple[int, ...], options: tuple[object, ...], work: Path) -> dict[str, Any]:
    """One row; `said` is what went wrong, None where nothing did."""
    row: dict[str, Any] = {"model": model, "target": target, "said": None}
    expected = reference(model, target, work / "reference")
    started = time.perf_counter()
    row["said"] = build(model, target, work / "bundle", *options)
    row["build_seconds"] = time.perf_counter() - started
    if row["said"] is not None:
        return row
    batch = [word for size in batches for word in ("--batch", size)]
    row["said"] = run(sys.executable, HERE / "gpu_probe.py", work / "bundle", work, *batch)
    if row["said"] is not None:
        return row
    found = read_probe(work)
    row |= {key: value for key, value in found.items() if key != "logits"}
    if expected is not None:
        off = np.abs(found["logits"] - expected["logits"]).max() / np.abs(expected["logits"]).max()
        same = np.cumprod(np.array(found["ids"]) == np.array(expected["ids"])).sum()
        row |= {"logits_off": float(off), "ids_equal": int(same), "ids_of": len(expected["ids"])}
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = [list(COLUMNS), ["---"] * len(COLUMNS)]
    for row in rows:
        speeds = row.get("speed", {})
        decode = [f"{speeds[size]['decode']:.1f}" if size in speeds else "" for size in ("1", "8", "32")]
        lines.append(
            [
                row["model"],
                row["target"],
                f"{row['logits_off']:.2e}" if "logits_off" in row else "",
                f"{row['ids_equal']} of {row['ids_of']}" if "ids_equal" in row else "",
                f"{speeds['1']['prefill']:.0f}" if "1" in speeds else "",
                *decode,
                f"{row['bandwidth_share']:.0%}" if "bandwidth_share" in row else "",
                row["said"] or "",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


@click.command()
@click.option("--model", "models", type=click.Choice(tuple(MODELS)), multiple=True, default=tuple(MODELS))
@click.option("--target", "targets", multiple=True, default=tuple(t.name for t in TARGETS if t.engine == "tensorrt"))
@click.option("--batch", "batches", type=int, multiple=True, default=(1, 8, 32), show_default=True)
@click.option("--minutes", type=float, default=9.0, show_default=True, help="Begin nothing after so long.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path(".cache/gpu-check"), show_default=True)
def main(
    models: tuple[str, ...], targets: tuple[str, ...], batches: tuple[int, ...], minutes: float, cache: Path
) -> None:
    """Print a row for every model and target, and keep them as results.json and results.md."""
    began = time.monotonic()
    cache.mkdir(parents=True, exist_ok=True)
    results = cache / "results.json"
    rows: list[dict[str, Any]] = json.loads(results.read_text(encoding="utf-8")) if results.exists() else []
    done = {(row["model"], row["target"]) for row in rows}
    left = [(model, target) for model in models for target in targets if (model, target) not in done]
    while left and time.monotonic() - began < 60 * minutes:
        model, target = left.pop(0)
        click.echo(f"checking {model} {target}", err=True)
        options = ("--arch", "native", "--batch", max(batches)) if target.startswith("trt-") else ()
        with tempfile.TemporaryDirectory(dir=cache) as work:
            rows.append(check(model, target, batches, options, Path(work)))
        partial = results.with_suffix(".partial")
        partial.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        shutil.move(partial, results)
        results.with_suffix(".md").write_text(table(rows), encoding="utf-8")
    click.echo(table(rows))
    if left:
        click.echo(f"{len(left)} of them are left: run this again", err=True)


if __name__ == "__main__":
    main()
