"""Fidelity of calibrated quantisation: ours and nvidia-modelopt's, side by side.

python benchmarks/calibration.py MODEL --text FILE --peers-python PATH [--only peers|ours] [--cache FOLDER]

MODEL is a Hugging Face folder. Both calibrate on the first tokens of the text and are measured on the following ones,
in windows that each start at position 0, against MODEL in float32; modelopt's configurations leave lm_head in float32.
Earlier results are read from the cache.
"""

import functools
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
from fidelity import BIN, reference_bundle
from report import Figures, cpu_name, fidelity_table
from tokenizers import Tokenizer

HERE = Path(__file__).parent
MODELOPT = "0.47.0"
# Our target, and modelopt's configurations, with the best of which it is compared.
UNIFORM = {
    "trt-int8": ("INT8_DEFAULT_CFG", "INT8_SMOOTHQUANT_CFG"),
    "trt-fp8": ("FP8_DEFAULT_CFG",),
    "trt-int4 --block-size 128": ("INT4_AWQ_CFG", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG"),
}
# The same with an 8-bit lm_head, which modelopt's configurations do not quantise.
SCHEMES = UNIFORM | {f"{target} --quantize-head": peers for target, peers in UNIFORM.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    model: Path
    text: Path
    skip: int
    tokens: int
    window: int
    threads: int

    def key(self) -> Figures:
        """Everything that results depend on besides the code."""
        files = sorted([*self.model.glob("*.json"), *self.model.glob("*.safetensors")])
        model = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        text = hashlib.sha256(self.text.read_bytes()).hexdigest()
        return {"model": model, "text_sha256": text, "skip": self.skip, "tokens": self.tokens, "window": self.window}


def write_tokens(setting: Setting, path: Path) -> None:
    """The calibration tokens, then those to measure on, without a BOS."""
    tokenizer = Tokenizer.from_file(str(setting.model / "tokenizer.json"))
    tokenizer.no_truncation()
    ids = tokenizer.encode(setting.text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    wanted = setting.skip + setting.tokens
    if len(ids) < wanted:
        raise click.ClickException(f"{setting.text} has {len(ids)} tokens: give one of {wanted} or lower the counts")
    np.save(path, np.array(ids[:wanted], np.int64))


def run(setting: Setting, *command: object) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(setting.threads)}
    subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr, env=environment)


def measure_peer(python: Path, config: str, setting: Setting, folder: Path, file: Path) -> None:
    tokens = folder / "tokens.npy"
    write_tokens(setting, tokens)
    command = python, HERE / "peer_modelopt.py", "--model", setting.model, "--tokens", tokens, "--config", config
    run(setting, *command, "--skip", setting.skip, "--window", setting.window, "--json", file)
    found = json.loads(file.read_text(encoding="utf-8"))["versions"]["nvidia-modelopt"]
    if found != MODELOPT:
        raise click.ClickException(f"--peers-python has nvidia-modelopt {found}: this compares with {MODELOPT}")


def measure_ours(build: str, setting: Setting, folder: Path, file: Path) -> None:
    staged = folder / "staged"
    options = "--stage", "onnx", "--calib", setting.text
    command = BIN / "megrez-compile", setting.model, "--target", *build.split(), *options
    samples = "--calib-samples", setting.skip // setting.window, "--calib-tokens", setting.window
    run(setting, *command, *samples, "-o", staged)
    with reference_bundle(setting.model, setting.window) as reference:
        options = "--skip", setting.skip, "--tokens", setting.tokens, "--window", setting.window
        command = BIN / "megrez", "eval", staged, "--text", setting.text, "--reference", reference
        run(setting, *command, *options, "--threads", setting.threads, "--json-file", file)
    versions = {name: version(name) for name in ("megrez-compile", "onnxruntime", "numpy")}
    figures = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**figures, "build": build, "versions": versions}, indent=2) + "\n", encoding="utf-8")


def sources_digest() -> str:
    folders = (HERE.parent / name for name in ("runtime", "engines", "calibration", "compile"))
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def results(setting: Setting, python: Path | None, only: str | None, cache: Path) -> Iterator[tuple[str, Figures]]:
    """By name, of all that is selected or in the cache; ours only for the current sources."""
    sources = sources_digest()
    for name in dict.fromkeys(name for build, configs in SCHEMES.items() for name in (*configs, build)):
        ours = name in SCHEMES
        key = json.dumps([name, sources if ours else MODELOPT, *setting.key().values()])
        file = cache / f"{name.replace(' ', '')}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"
        if not file.exists() and only != ("peers" if ours else "ours") and (ours or python):
            click.echo(f"measuring {name}", err=True)
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                made = Path(folder) / file.name
                measure = measure_ours if ours else functools.partial(measure_peer, python)
                measure(name, setting, Path(folder), made)
                made.rename(file)
        if file.exists():
            yield name, json.loads(file.read_text(encoding="utf-8"))


EXISTING = click.Path(path_type=Path, exists=True)


@click.command()
@click.argument("model", type=EXISTING)
@click.option("--text", required=True, type=EXISTING, help="UTF-8 text to calibrate and measure on.")
@click.option("--peers-python", type=click.Path(path_type=Path), help="A Python that has nvidia-modelopt.")
@click.option("--only", type=click.Choice(["peers", "ours"]), help="Measure only these; show the others if cached.")
@click.option("--skip", default=16384, show_default=True, help="Calibrate on this many tokens.")
@click.option("--tokens", default=8192, show_default=True, help="Measure on this many tokens.")
@click.option("--window", default=512, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path(".cache/calibration"), show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(peers_python: Path | None, only: str | None, cache: Path, json_file: Path | None, **options: Any) -> None:
    """Print the fidelity of both to MODEL in float32, and the ratio of their KL."""
    setting = Setting(**options)
    cache.mkdir(parents=True, exist_ok=True)
    found = dict(results(setting, peers_python and peers_python.absolute(), only, cache))
    text, ratios = fidelity_table(found, SCHEMES)
    click.echo(text)
    if json_file is not None:
        report = {"command": shlex.join(["python", "benchmarks/calibration.py", *sys.argv[1:]]), "cpu": cpu_name()}
        report |= {**setting.key(), "ratios": ratios, "results": found}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
