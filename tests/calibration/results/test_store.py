"""Unfinished work is resumed by the same request, and by no other."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megrez.calibration.results.record import read_record
from megrez.compile.calibrate.stage import calibrate_checkpoint
from megrez.compile.calibrate.text import CalibrationText
from megrez.compile.checkpoint import open_checkpoint
from megrez.engines.targets import find_target
from tests.calibration_models import random_tokens
from tests.conftest import Make

TINY = {"layers": 1, "hidden": 48, "heads": 4, "head_dim": 16, "intermediate": 80}
TARGET = find_target("trt-int8")


def text_of(tokens: np.ndarray, held_out: np.ndarray) -> CalibrationText:
    return CalibrationText(
        tokens=tokens,
        held_out=held_out.reshape(-1),
        source="a.txt",
        held_out_source="a.txt",
        sha256=hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest(),
        seed=None,
    )


TOKENS = random_tokens(4, 16)
OTHER = TOKENS.copy()
OTHER[0, 3] += 1
REQUESTS: dict[str, dict[str, object]] = {
    "the same": {},
    "another source of the same tokens": {"text": replace(text_of(TOKENS[:3], TOKENS[3:]), source="b.txt")},
    "algorithm": {"algorithm": "rtn"},
    "tokens": {"text": text_of(OTHER[:3], TOKENS[3:])},
    "held-out tokens": {"text": text_of(TOKENS[:3], OTHER[:1])},
    "calibration samples": {"text": text_of(TOKENS[:2], TOKENS[2:])},
    "length of samples": {"text": text_of(TOKENS[:3].reshape(6, 8), TOKENS[3:])},
    "weights": {"shape": {**TINY, "seed": 1}},
    "shape": {"shape": {**TINY, "kv_heads": 4}},
    "target": {"target": find_target("trt-fp8")},
    "formats": {"target": find_target("trt-int8").with_head()},
}
SAME = ("the same", "another source of the same tokens")


@pytest.fixture
def request_of(checkpoint_of: Make, tmp_path: Path) -> Callable[..., list[int]]:
    """Calibrates to scales.json; what `progress` was called with. Dies after the first layer with `die`."""

    def run(*, die: bool = False, **changed: object) -> list[int]:
        calls: list[int] = []

        def progress(layers: int) -> None:
            calls.append(layers)
            if die and layers == 1:
                raise KeyboardInterrupt

        request = {"shape": TINY, "target": TARGET, "algorithm": "gptq", "text": text_of(TOKENS[:3], TOKENS[3:])}
        request |= changed
        checkpoint = open_checkpoint(str(checkpoint_of(**request["shape"])))  # type: ignore[arg-type]
        target, algorithm, text = request["target"], request["algorithm"], request["text"]
        calibrate_checkpoint(checkpoint, target, algorithm, text, tmp_path / "scales.json", progress)  # type: ignore[arg-type]
        return calls

    return run


def folders(path: Path) -> set[str]:
    return {one.name for one in path.iterdir() if one.is_dir()}


@pytest.mark.parametrize("name", REQUESTS)
def test_only_the_same_request_resumes(name: str, request_of: Callable[..., list[int]], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        request_of(die=True)
    left = folders(tmp_path)
    assert len(left) == 1 and not (tmp_path / "scales.json").exists()
    calls = request_of(**REQUESTS[name])
    found = read_record(tmp_path / "scales.json")
    used = {file.path.split("/")[0] for file in found.files}
    if name in SAME:
        assert calls == [1] and used == left == folders(tmp_path)
    else:
        assert calls == [0, 1] and len(used) == 1 and not used & left
        assert (tmp_path / left.pop() / "progress.json").is_file()  # still there for its own request


def test_a_finished_calibration_leaves_scales_and_their_files_alone(
    request_of: Callable[..., list[int]], tmp_path: Path
) -> None:
    request_of()
    record = read_record(tmp_path / "scales.json")
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert made == {"scales.json"} | {file.path for file in record.files}
    before = {one: (tmp_path / one).read_bytes() for one in made}
    request_of()
    assert before == {one: (tmp_path / one).read_bytes() for one in made}
