"""Fidelity of quantised builds of one checkpoint: ours, and onnxruntime-genai's through plain ONNX Runtime.

python benchmarks/fidelity.py MODEL --text FILE --bundle BUNDLE ... --genai FOLDER ... [--json FILE]

MODEL is a Hugging Face folder, or the cpu-fp32 bundle of one. FOLDER is the output of onnxruntime_genai.models.builder.
All are measured on the same tokens in the same windows, each window from an empty cache.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import click
import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from megrez.calibration.reference.fidelity import measure_fidelity
from megrez.runtime.batch import Batch, check_copy
from megrez.runtime.bundle import open_bundle
from megrez.runtime.engines import open_session
from megrez.runtime.text import Text

BIN = Path(sys.executable).parent
Figures = dict[str, float]


class GenaiGraph:
    """A graph of onnxruntime-genai's builder as a megrez Session of one slot."""

    slots = 1

    def __init__(self, folder: Path, threads: int) -> None:
        config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        path = folder / config["decoder"]["filename"]
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.capacity: int = config["context_length"]
        self.vocab_size: int = config["vocab_size"]
        decoder = config["decoder"]
        shape = 1, decoder["num_key_value_heads"], 0, decoder["head_size"]
        past = [name for one in self._session.get_inputs() if (name := one.name).startswith("past_key_values.")]
        self._empty = {name: np.zeros(shape, np.float32) for name in past}
        self._presents = [name.replace("past_key_values", "present") for name in past]
        self._past = self._empty

    def step(
        self,
        tokens: ArrayLike,
        starts: ArrayLike,
        logits_index: ArrayLike,
        *,
        slots: ArrayLike | None = None,
        counts: ArrayLike | None = None,
    ) -> NDArray[np.float32]:
        """See megrez.runtime.session.Session; a start must be 0 or the tokens read so far."""
        batch = Batch.of(tokens, starts, logits_index, slots, counts, most=1, capacity=self.capacity)
        start, count = int(batch.starts[0]), len(batch.tokens)
        if start == 0:
            self._past = self._empty
        mask = np.ones((1, start + count), np.int64)
        feeds = {"input_ids": batch.tokens[None], "attention_mask": mask, **self._past}
        logits, *present = self._session.run(["logits", *self._presents], feeds)
        self._past = dict(zip(self._past, present, strict=True))
        selected: NDArray[np.float32] = logits[0][batch.logits_index]
        return selected

    def copy(self, source: int, target: int, length: int) -> None:
        """See megrez.runtime.session.Session. There is no other slot to copy to."""
        check_copy(source, target, length, most=1, capacity=self.capacity)

    def close(self) -> None:
        self._past = self._empty


def of_bundle(bundle: Path, text: Path, reference: Path, tokens: int, window: int, threads: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [BIN / "megrez", "eval", bundle, "--text", text, "--reference", reference, "--json-file", file]
        command += ["--tokens", tokens, "--window", window, "--threads", threads]
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
        figures: Figures = json.loads(file.read_text(encoding="utf-8"))
    return figures


def of_genai(folder: Path, text: Path, reference: Path, tokens: int, window: int, threads: int) -> Figures:
    truth = open_bundle(reference)
    ids = np.array(Text.open(truth).encode(text.read_text(encoding="utf-8"), add_bos=False)[:tokens], np.int64)
    with contextlib.closing(open_session(truth, threads=threads)) as session:
        found = measure_fidelity(GenaiGraph(folder, threads), session, ids, window=window)
    return {name: getattr(found, name) for name in found.__slots__}


@contextlib.contextmanager
def reference_bundle(model: Path, window: int) -> Iterator[Path]:
    if (model / "manifest.json").is_file():
        yield model
        return
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "reference"
        command = [BIN / "megrez-compile", model, "--target", "cpu-fp32", "--context", window, "-o", bundle]
        subprocess.run([str(word) for word in command], check=True)
        yield bundle


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--text", required=True, type=click.Path(path_type=Path, exists=True), help="Measure on this UTF-8 text.")
@click.option("--bundle", "bundles", multiple=True, type=click.Path(path_type=Path, exists=True))
@click.option("--genai", "genai", multiple=True, type=click.Path(path_type=Path, exists=True))
@click.option("--tokens", type=int, default=8192, show_default=True)
@click.option("--window", type=int, default=512, show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(
    model: Path,
    text: Path,
    bundles: tuple[Path, ...],
    genai: tuple[Path, ...],
    tokens: int,
    window: int,
    threads: int,
    json_file: Path | None,
) -> None:
    """Print KL, top-1 agreement and perplexity of every BUNDLE and genai FOLDER against MODEL in float32."""
    results = {}
    print("| build | bytes | KL mean | KL p99 | top-1 | perplexity | float32's |\n|---|---|---|---|---|---|---|")
    with reference_bundle(model, window) as reference:
        for measured, folders in ((of_bundle, bundles), (of_genai, genai)):
            for folder in folders:
                size = sum(file.stat().st_size for file in folder.glob("model.onnx*"))
                found = measured(folder, text, reference, tokens, window, threads)
                results[folder.name] = {**found, "bytes": size}
                print(
                    f"| {folder.name} | {size / 1e6:.0f} MB | {found['kl_mean']:.5f} | {found['kl_p99']:.4f} "
                    f"| {found['top1_agreement']:.4f} | {found['perplexity']:.3f} "
                    f"| {found['reference_perplexity']:.3f} |",
                    flush=True,
                )
    if json_file is not None:
        command = [Path(sys.argv[0]).name, *sys.argv[1:]]
        report = {"command": command, "onnxruntime": onnxruntime.__version__, "results": results}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
