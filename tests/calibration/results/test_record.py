"""Scales on disk: read back as they were, and one line that says what is wrong with them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megrez.calibration.recipe import GroupResult
from megrez.calibration.results.record import SCHEMA_VERSION, Record, describe_file, read_record
from megrez.runtime.errors import UsageError
from megrez.runtime.manifest import Calibration, Fidelity


@pytest.fixture
def scales(tmp_path: Path) -> Path:
    """A record with two files of matrices, written to scales.json."""
    (tmp_path / "scales.1234").mkdir()
    for at, data in enumerate((b"first layer", b"")):
        (tmp_path / "scales.1234" / f"{at:03d}.safetensors").write_bytes(data)
    (tmp_path / "scales.json").write_text(record(tmp_path).to_json(), encoding="utf-8")
    return tmp_path / "scales.json"


def record(folder: Path) -> Record:
    return Record(
        schema_version=SCHEMA_VERSION,
        target="trt-int8",
        algorithm="smoothquant",
        input_type="int8",
        finer=("model.layers.0.mlp.down_proj.weight",),
        model="tiny — 小",
        model_sha256="ab" * 32,
        text=Calibration(source="book.txt", sha256="cd" * 32, samples=3, tokens=24, seed=None),
        fidelity=Fidelity(
            perplexity=12.25,
            reference_perplexity=12.0,
            kl_mean=0.1 + 0.2,
            kl_p99=1e-300,
            top1_agreement=1.0,
            tokens=48,
        ),
        groups={"model.layers.0.qkv": QUANTIZED, "lm_head": UNQUANTIZED},
        files=tuple(describe_file(path, folder) for path in sorted((folder / "scales.1234").iterdir())),
    )


QUANTIZED = GroupResult(smoothing_exponent=0.3, input_scale=1 / 3, relative_error=1e-7, zero_channels=2)
UNQUANTIZED = GroupResult(smoothing_exponent=None, input_scale=None, relative_error=0.0, zero_channels=1)


def test_it_is_read_as_it_was_written(scales: Path) -> None:
    found = read_record(scales)
    assert found == record(scales.parent) and found.zero_channels == 3
    assert [(file.path, file.size) for file in found.files] == [
        ("scales.1234/000.safetensors", 11),
        ("scales.1234/001.safetensors", 0),
    ]
    assert found.files[0].sha256 == hashlib.sha256(b"first layer").hexdigest()
    assert "小" in scales.read_text(encoding="utf-8")


def test_files_lie_beside_the_json_wherever_that_is(scales: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for one in (scales, scales.parent / "scales.1234"):
        one.rename(moved / one.name)
    assert read_record(moved / "scales.json") == record(moved)


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    edit(data)
    path.write_text(json.dumps(data), encoding="utf-8")


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "an older schema": (
        lambda data: data.update(schema_version=3, caches={}, points=data.pop("groups")),
        rf"has schema version 3, this version of megrez reads {SCHEMA_VERSION}: calibrate",
    ),
    "a newer schema": (
        lambda data: data.update(schema_version=SCHEMA_VERSION + 1, new={}),
        rf"has schema version {SCHEMA_VERSION + 1}, this version of megrez reads {SCHEMA_VERSION}: calibrate",
    ),
    "an unknown field": (lambda data: data.update(more=1), "more is not a known field"),
    "an unknown field inside": (lambda data: data["text"].update(more=1), r"text\.more is not a known field"),
    "a missing field": (lambda data: data.pop("groups"), "groups is missing"),
    "another type": (lambda data: data["text"].update(samples="3"), r"text\.samples is str, not int"),
    "a group's scale": (
        lambda data: data["groups"]["lm_head"].update(input_scale="1"),
        r"groups\.lm_head\.input_scale is str, not float",
    ),
    "two at once": (lambda data: (data.pop("target"), data.pop("model")), "target is missing; model is missing"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_is_one_line(name: str, scales: Path) -> None:
    edit, message = FAULTS[name]
    change(scales, edit)
    with pytest.raises(UsageError, match=rf"scales\.json[^\n]*{message}[^\n]*again$"):
        read_record(scales)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"null"])
def test_what_is_no_record_is_one_line(data: bytes, scales: Path) -> None:
    scales.write_bytes(data)
    with pytest.raises(UsageError, match=r"^[^\n]*scales\.json[^\n]*$"):
        read_record(scales)


def test_no_file_at_all_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]*none\.json cannot be read as scales [^\n]*megrez calibrate$"):
        read_record(tmp_path / "none.json")


def test_a_missing_and_a_cut_matrix_file_are_named_at_once(scales: Path) -> None:
    first, second = (scales.parent / "scales.1234" / f"{at:03d}.safetensors" for at in range(2))
    first.write_bytes(b"first")
    with pytest.raises(UsageError, match=r"^[^\n]*scales\.1234/000\.safetensors has 5 bytes, expected 11: [^\n]*$"):
        read_record(scales)
    second.unlink()
    with pytest.raises(UsageError, match=r"000\.safetensors has 5[^\n]*; scales\.1234/001\.safetensors is missing: "):
        read_record(scales)
