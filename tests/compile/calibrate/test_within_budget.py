"""`--max-kl` as a user meets it: the budget holds on text that was not learned from, and bytes are saved by it."""

from pathlib import Path
from typing import Any

import pytest

from megrez.runtime.bundle import open_bundle

TEXT = "--calib-samples", 8, "--calib-tokens", 64, "--fidelity-tokens", 512, "--context", 64


def compiled(megrez_compile: Any, folder: Path, target: str, output: Path, *options: object) -> Any:
    done = megrez_compile(folder, "--target", target, "-o", output, *TEXT, *options)
    assert done.code == 0, done.err
    return open_bundle(output)


def test_the_budget_is_met_by_less_than_the_uniform_scheme_that_meets_it(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path
) -> None:
    folder = checkpoint_of()
    coarse = compiled(megrez_compile, folder, "cpu-int4", tmp_path / "int4", "--algorithm", "rtn")
    fine = compiled(megrez_compile, folder, "cpu-int8", tmp_path / "int8")
    assert coarse.manifest.measured is not None and fine.manifest.measured is not None
    budget = coarse.manifest.measured.fidelity.kl_mean * 0.6
    assert fine.manifest.measured.fidelity.kl_mean < budget
    mixed = compiled(megrez_compile, folder, "cpu-int4", tmp_path / "mixed", "--max-kl", budget)
    assert mixed.manifest.measured is not None
    assert mixed.manifest.measured.fidelity.kl_mean <= budget
    assert mixed.size < fine.size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int4", "int8", "mixed", "mixed.sensitivity.png"]


def test_a_staged_graph_keeps_float32_where_the_budget_asks(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path
) -> None:
    folder = checkpoint_of()
    done = megrez_compile(
        folder, "--target", "trt-int8", "--stage", "onnx", "-o", tmp_path / "b", *TEXT, "--max-kl", 1e-4
    )
    assert done.code == 0, done.err
    table = [line for line in done.err.splitlines() if line[:5].strip().isdigit()]
    assert len(table) == 2 and "*" in "".join(table)
    measured = open_bundle(tmp_path / "b").manifest.measured
    assert measured is not None and measured.fidelity.kl_mean <= 1e-4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-kl", "0"), ("--max-kl is 0", "positive")),
        (("--max-kl", "1e-9"), ("--max-kl is 1e-09", "raise it")),
        (("--max-kl", "0.1", "--scales", "scales.json"), ("no --scales",)),
        (("--max-kl", "0.1", *TEXT[:4], "--fidelity-tokens", "0"), ("--fidelity-tokens is 0",)),
    ],
)
def test_a_budget_that_cannot_be_met_is_one_line(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, options: tuple[object, ...], said: tuple[str, ...]
) -> None:
    brief = () if "--calib-samples" in options else TEXT
    done = megrez_compile(checkpoint_of(), "--target", "cpu-int4", "-o", tmp_path / "b", *options, *brief)
    told = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert (done.code, done.out, len(told)) == (2, "", 1), done.err
    assert all(part in told[0] for part in said) and "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


def test_a_budget_that_only_the_finest_formats_meet_is_met(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever sensitivities promise: the last round keeps every group in higher precision."""
    monkeypatch.setattr(
        "megrez.compile.calibrate.within_budget.choose_higher_precision", lambda choices, budget: frozenset()
    )
    folder = checkpoint_of()
    fine = compiled(megrez_compile, folder, "cpu-int8", tmp_path / "int8").manifest.measured
    assert fine is not None
    mixed = compiled(
        megrez_compile, folder, "cpu-int4", tmp_path / "mixed", "--max-kl", 2 * fine.fidelity.kl_mean
    ).manifest.measured
    assert mixed is not None and mixed.fidelity.kl_mean <= 2 * fine.fidelity.kl_mean
