"""`megrez eval` tells the figures that transformers' own logits give, computed at once in float64."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megrez.engines.ort.session import open_session
from megrez.runtime.bundle import open_bundle
from tests.reference import log_softmax, logits

TEXT = "the hall in the land and a hello on another hill; " * 4
COUNT, WINDOW = 75, 32
FIGURES = ["perplexity", "reference_perplexity", "kl_mean", "kl_p99", "top1_agreement", "tokens"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def compiled(megrez_compile: Any, checkpoint: Path, target: str, output: Path, *options: object) -> None:
    done = megrez_compile(checkpoint, "--target", target, "-o", output, "--context", 64, *options)
    assert done.code == 0, done.err


def tokens(folder: Path) -> list[int]:
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids[:COUNT]
    assert len(ids) == COUNT
    return ids


def model_logits(bundle: Path, ids: list[int]) -> np.ndarray[Any, Any]:
    session = open_session(open_bundle(bundle), threads=1)
    return np.array(session.step(np.array([ids]), np.zeros(1, np.int32), np.arange(len(ids))))


@pytest.mark.parametrize("target", ["cpu-fp32", "cpu-int4"])
def test_figures(checkpoint_of: Any, megrez_compile: Any, megrez: Any, text: Path, tmp_path: Path, target: str) -> None:
    folder = checkpoint_of()
    compiled(megrez_compile, folder, target, tmp_path / "b")
    options = ("--tokens", COUNT, "--window", WINDOW, "--json-file", tmp_path / "figures.json")
    code, out, _ = megrez("eval", tmp_path / "b", "--text", text, "--reference", folder, *options)
    found = json.loads((tmp_path / "figures.json").read_text())
    assert (code, list(found), found["tokens"]) == (0, FIGURES, COUNT)
    assert [line.split()[0] for line in out.splitlines()] == FIGURES
    ids = tokens(folder)
    windows = [ids[at : at + WINDOW] for at in range(0, COUNT, WINDOW)]
    truth = [log_softmax(logits(folder, window)) for window in windows]
    # In float32 the bundle is transformers' model; in int4 it is what its session says, which other tests check.
    model = truth if target == "cpu-fp32" else [log_softmax(model_logits(tmp_path / "b", window)) for window in windows]
    kl = np.concatenate([(np.exp(p) * (p - q)).sum(axis=-1) for p, q in zip(truth, model, strict=True)])
    agreed = np.concatenate([p.argmax(axis=-1) == q.argmax(axis=-1) for p, q in zip(truth, model, strict=True)])

    def perplexity(all_rows: list[np.ndarray[Any, Any]]) -> float:
        losses = [-rows[i, w[i + 1]] for rows, w in zip(all_rows, windows, strict=True) for i in range(len(w) - 1)]
        return float(np.exp(np.mean(losses)))

    assert found["reference_perplexity"] == pytest.approx(perplexity(truth), rel=1e-4)
    assert found["perplexity"] == pytest.approx(perplexity(model), rel=1e-4)
    assert found["kl_mean"] == pytest.approx(kl.mean(), rel=1e-3, abs=1e-9)
    assert found["kl_p99"] == pytest.approx(np.percentile(kl, 99), rel=1e-3, abs=1e-9)
    assert found["top1_agreement"] == pytest.approx(agreed.mean(), abs=1e-9)
    assert megrez("eval", tmp_path / "b", "--text", text, *options)[0] == 0
    alone = json.loads((tmp_path / "figures.json").read_text())
    assert alone == {"perplexity": pytest.approx(perplexity(model), rel=1e-4), "tokens": COUNT}


WITHOUT_THE_COMPILER = """
import sys
for name in ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "optimum", "safetensors", "ml_dtypes", "gguf"):
    sys.modules[name] = None
from megrez.runtime.cli import main
main()
"""


def test_only_a_checkpoint_as_the_reference_needs_what_compiles(
    checkpoint_of: Any, megrez_compile: Any, text: Path, tmp_path: Path
) -> None:
    compiled(megrez_compile, checkpoint_of(), "cpu-fp32", tmp_path / "b")

    def evaluate(*reference: object) -> subprocess.CompletedProcess[str]:
        given = ("eval", tmp_path / "b", "--text", text, "--tokens", 40, "--window", 20, *reference)
        command = [sys.executable, "-c", WITHOUT_THE_COMPILER, *map(str, given)]
        return subprocess.run(command, capture_output=True, text=True)

    assert evaluate().stdout.startswith("perplexity ")
    compared = evaluate("--reference", tmp_path / "b")
    assert (compared.returncode, "kl_mean               0\n" in compared.stdout) == (0, True), compared
    refused = evaluate("--reference", checkpoint_of())
    assert refused.returncode == 1 and refused.stderr.startswith("error: a reference that is no bundle needs ")
    assert refused.stderr.endswith("run  pip install 'megrez-compile[export]'\n")


def test_a_bundle_can_be_the_reference(
    checkpoint_of: Any, megrez_compile: Any, megrez: Any, text: Path, tmp_path: Path
) -> None:
    for target in ("cpu-fp32", "cpu-int8"):
        compiled(megrez_compile, checkpoint_of(), target, tmp_path / target)
    figures = {}
    for reference in (tmp_path / "cpu-fp32", checkpoint_of()):
        options = ("--tokens", 40, "--window", 20, "--json-file", tmp_path / "f.json")
        assert megrez("eval", tmp_path / "cpu-int8", "--text", text, "--reference", reference, *options)[0] == 0
        figures[reference] = json.loads((tmp_path / "f.json").read_text())
    first, second = figures.values()
    assert first == second and first["kl_mean"] > 0


def test_skipped_tokens_are_not_read(
    checkpoint_of: Any, megrez_compile: Any, megrez: Any, text: Path, tmp_path: Path
) -> None:
    folder = checkpoint_of()
    compiled(megrez_compile, folder, "cpu-fp32", tmp_path / "b")
    options = ("--tokens", 30, "--skip", 20, "--window", 64, "--json-file", tmp_path / "f.json")
    assert megrez("eval", tmp_path / "b", "--text", text, "--reference", tmp_path / "b", *options)[0] == 0
    found, ids = json.loads((tmp_path / "f.json").read_text()), tokens(folder)[20:50]
    losses = -log_softmax(logits(folder, ids))[np.arange(29), ids[1:]]
    assert found["tokens"] == 30 and found["perplexity"] == pytest.approx(np.exp(losses.mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--window", 65], "--window is 65: the bundle's context takes 2 to 64"),
        (["--window", 1], "--window is 1: the bundle's context takes 2 to 64"),
        (["--tokens", 1], "--tokens is 1 and "),
        (["--tokens", 100_000], "choose 2 to"),
        (["--skip", -1], "--skip is -1 and "),
        (["--skip", 99_999], "skip 0 to "),
        (["--skip", 80], "after those skipped: choose 2 to "),
        (["--text", "/none"], "--text /none cannot be read"),
    ],
)
def test_misuse(
    checkpoint_of: Any, megrez_compile: Any, megrez: Any, text: Path, tmp_path: Path, options: list[Any], said: str
) -> None:
    folder = checkpoint_of()
    compiled(megrez_compile, folder, "cpu-int4", tmp_path / "b", "--algorithm", "rtn")
    arguments = {"--text": text, "--tokens": 40, "--window": 20, **dict([options])}
    given = [part for pair in arguments.items() for part in pair]
    code, out, err = megrez("eval", tmp_path / "b", "--reference", folder, *given)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: ") and said in err


def test_figures_that_cannot_be_written_are_shown_all_the_same(
    checkpoint_of: Any, megrez_compile: Any, megrez: Any, text: Path, tmp_path: Path
) -> None:
    folder = checkpoint_of()
    compiled(megrez_compile, folder, "cpu-fp32", tmp_path / "b")
    options = ("--tokens", 40, "--window", 20, "--json-file", tmp_path / "none" / "f.json")
    code, out, err = megrez("eval", tmp_path / "b", "--text", text, "--reference", tmp_path / "b", *options)
    assert code == 1 and [line.split()[0] for line in out.splitlines()] == FIGURES
    assert err.endswith("none/f.json cannot be written (No such file or directory): choose another file\n")
    assert "Traceback" not in err


def test_another_model_is_no_reference(
    checkpoint_of: Any, megrez_compile: Any, megrez: Any, text: Path, tmp_path: Path
) -> None:
    for name, shape in (("b", {}), ("other", {"family": "qwen3"})):
        compiled(megrez_compile, checkpoint_of(**shape), "cpu-fp32", tmp_path / name)
    options = ("--reference", tmp_path / "other", "--text", text, "--tokens", 40, "--window", 20)
    code, _, err = megrez("eval", tmp_path / "b", *options)
    assert code == 2 and "differ in shape: give the checkpoint that the bundle was compiled from" in err
