"""Builds every target for this machine's GPU, compares it with a CPU and times it: one JSON file and one table.

python benchmarks/gpu_check.py [--model tiny …] [--target trt-fp16 …] [--minutes 9] [--cache FOLDER] [--cuda-python P]

Models are random weights in the shapes of a tiny Llama, SmolLM2-135M and Megrez-3B. The reference is the float32
bundle for *-fp16; for other trt-* the staged graph, and for other cuda-* the bundle's own codes and scales in float32:
each on ONNX Runtime's CPU kernels. Megrez's shape is only timed. --cuda-python: a Python with onnxruntime-gpu, which
cannot be installed beside onnxruntime. Results are kept in FOLDER: the next run continues one that stopped after
--minutes, and a target that fails has its error in its row.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from gpu_judge import compare, table

from megrez.engines.targets import TARGETS

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
# Seconds for one command, which is then stopped.
LIMIT = 500
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
# What gpu_probe.py writes beside its JSON.
ARRAYS = ("logits", "steps", "ragged")
GPUS = tuple(target.name for target in TARGETS if target.engine in ("tensorrt", "ort-cuda"))


class Failed(Exception):
    """A command failed; its one-line error."""


def run(*command: object) -> str:
    """A command's output; raises Failed with the last line of its errors."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT)
    except (subprocess.TimeoutExpired, OSError) as error:
        raise Failed(f"{Path(words[0]).name}: {error.__class__.__name__}, {LIMIT} s at most") from error
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode != 0:
        raise Failed(re.sub(r"^[\w.]+Error: ", "", lines[-1]) if lines else f"exit code {done.returncode}")
    return done.stdout


def build(model: str, target: str, output: Path, *options: object) -> Path:
    config = output.with_name(f"{model}.json")
    config.write_text(json.dumps({**COMMON, **MODELS[model], "max_position_embeddings": CONTEXT}), encoding="utf-8")
    command = (BIN / "megrez-compile", config, "--dummy-weights", "--target", target, "--context", CONTEXT)
    run(*command, *options, "-o", output)
    return output


def reference(model: str, target: str, bundle: Path, folder: Path) -> dict[str, Any] | None:
    """Logits and ids on the CPU; None where there are none."""
    if model == TIMED_ONLY or target == "trt-nvfp4":
        return None
    folder.mkdir()
    source, options = folder / "bundle", ()
    if target.endswith("-fp16") or target.startswith("cpu-"):
        build(model, "cpu-fp32", source)
    elif target.startswith("cuda-"):
        run(sys.executable, HERE / "gpu_reference.py", bundle, source)
        options = ("--cpu",)
    else:
        build(model, target, source, "--stage", "onnx")
    run(sys.executable, HERE / "gpu_probe.py", source, folder, "--output-tokens", 2, *options)
    return read_probe(folder)


def read_probe(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "probe.json").read_text(encoding="utf-8"))
    return {**found, **{name: np.load(file) for name in ARRAYS if (file := folder / f"{name}.npy").exists()}}


def check(
    model: str, target: str, batches: tuple[int, ...], devices: dict[str, Any], pythons: dict[str, Any], work: Path
) -> dict[str, Any]:
    """One row; `error` is None for a target that passed."""
    row: dict[str, Any] = {"model": model, "target": target, "error": None}
    family = target.split("-")[0]
    try:
        if (missing := devices.get(family, {}).get("error")) is not None:
            raise Failed(missing)
        started = time.perf_counter()
        options = ("--arch", "native", "--batch", max(batches)) if family == "trt" else ()
        bundle = build(model, target, work / "bundle", *options)
        row["build_seconds"] = time.perf_counter() - started
        batch = [word for size in batches for word in ("--batch", size)]
        run(pythons.get(family, sys.executable), HERE / "gpu_probe.py", bundle, work, *batch)
        found = read_probe(work)
        row |= {key: value for key, value in found.items() if key not in ARRAYS}
        if "1" in found["speed"]:
            row["bandwidth_share"] = found["speed"]["1"]["bandwidth_share"]
        if (expected := reference(model, target, bundle, work / "reference")) is not None:
            row |= compare(found, expected, target)
    except Failed as failed:
        row["error"] = str(failed)
    return row


def find_devices(pythons: dict[str, Any]) -> dict[str, Any]:
    """By family of targets: the GPU as its library reports it, or the error."""
    found: dict[str, Any] = {}
    for family, extra in (("trt", "rtx"), ("cuda", "cuda")):
        try:
            found[family] = json.loads(run(pythons[family], HERE / "gpu_device.py", extra))
        except Failed as failed:
            found[family] = {"error": str(failed)}
    return found


def answer(devices: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Whether TensorRT-RTX runs on this GPU, in one line."""
    gpu = devices["trt"]
    if "error" in gpu:
        return f"TensorRT-RTX: {gpu['error']}"
    first = next((row for row in rows if row["target"] == "trt-fp16"), None)
    error = "not tried yet" if first is None else first["error"]
    verdict = "runs" if error is None else f"does not run: {error}"
    return f"{gpu['library']} on {gpu['name']} ({gpu['capability']}): {verdict}"


@click.command()
@click.option("--model", "models", type=click.Choice(tuple(MODELS)), multiple=True, default=tuple(MODELS))
@click.option("--target", "targets", multiple=True, default=sorted(GPUS, key=lambda name: name != "trt-fp16"))
@click.option("--batch", "batches", type=int, multiple=True, default=(1, 8, 32), show_default=True)
@click.option("--minutes", type=float, default=9.0, show_default=True, help="Start no target after this time.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path(".cache/gpu-check"), show_default=True)
@click.option("--cuda-python", default=sys.executable, help="Run cuda-* with this Python [this one].")
def main(
    models: tuple[str, ...],
    targets: tuple[str, ...],
    batches: tuple[int, ...],
    minutes: float,
    cache: Path,
    cuda_python: str,
) -> None:
    """Print a row for every model and target, and keep them as results.json and results.md."""
    began = time.monotonic()
    cache.mkdir(parents=True, exist_ok=True)
    results = cache / "results.json"
    rows: list[dict[str, Any]] = json.loads(results.read_text(encoding="utf-8"))["rows"] if results.exists() else []
    pythons = {"trt": sys.executable, "cuda": cuda_python}
    devices = find_devices(pythons)
    tried = {(row["model"], row["target"]): row["error"] for row in rows}
    left = [(model, target) for model in models for target in targets if (model, target) not in tried]
    left += [one for one, error in tried.items() if error is not None]  # failed targets are tried again, last
    while left and time.monotonic() - began < 60 * minutes:
        model, target = left.pop(0)
        click.echo(f"checking {model} {target}", err=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            row = check(model, target, batches, devices, pythons, Path(work))
        rows = [*(one for one in rows if (one["model"], one["target"]) != (model, target)), row]
        if target == "trt-fp16":
            click.echo(answer(devices, rows), err=True)
        write(results, devices, rows)
    click.echo(f"{answer(devices, rows)}\n\n{table(rows)}")
    if left:
        click.echo(f"{len(left)} targets are left: run this again", err=True)


def write(results: Path, devices: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    partial = results.with_suffix(".partial")
    partial.write_text(json.dumps({"devices": devices, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    shutil.move(partial, results)
    results.with_suffix(".md").write_text(f"{answer(devices, rows)}\n\n{table(rows)}", encoding="utf-8")


if __name__ == "__main__":
    main()
