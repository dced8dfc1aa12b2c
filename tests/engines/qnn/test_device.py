"""Contexts for another chip, or of a newer library, are refused: the library itself takes them."""

from dataclasses import replace
from pathlib import Path

import pytest

from megrez.engines.qnn import device
from megrez.engines.qnn.chips import find_chip
from megrez.engines.qnn.layout import Compiled
from megrez.runtime.errors import EngineError
from megrez.runtime.manifest import Device

ELITE = Compiled(chip="snapdragon-8-elite", soc_model=69, htp_arch=79, shared=False)
BUILT = Device(
    library="onnxruntime-qnn",
    version="2.7.0",
    capabilities=("snapdragon-8-elite", "v79"),
    slots=1,
    chunk=64,
    max_logits=1,
    memory_bytes=1,
    version_compatible=True,
)


def machine(folder: Path, product: str) -> Path:
    path = folder / "machine"
    path.write_text(f"{product}\n")
    return path


def test_the_chip_tells_its_product(tmp_path: Path) -> None:
    assert device.chip_at_hand(machine(tmp_path, "SM8650")) == find_chip("snapdragon-8-gen-3")
    assert device.chip_at_hand(machine(tmp_path, "MT6991")) is None
    assert device.chip_at_hand(tmp_path / "nothing") is None


def test_a_context_runs_on_its_own_chip_and_in_the_emulator(tmp_path: Path) -> None:
    device.check_chip(ELITE, tmp_path / "nothing")
    device.check_chip(ELITE, machine(tmp_path, "SM8750P"))
    with pytest.raises(EngineError) as caught:
        device.check_chip(ELITE, machine(tmp_path, "SM8650"))
    assert str(caught.value) == (
        "the bundle was compiled for snapdragon-8-elite (v79), this is a snapdragon-8-gen-3 (SM8650, v75): "
        "compile it with --arch snapdragon-8-gen-3"
    )


@pytest.mark.parametrize(("installed", "runs"), [("2.7.0", True), ("2.10.1", True), ("2.6.9", False), ("1.9", False)])
def test_a_library_older_than_the_contexts_is_refused(
    monkeypatch: pytest.MonkeyPatch, installed: str, runs: bool
) -> None:
    monkeypatch.setattr(device, "version", lambda: installed)
    if runs:
        device.check_version(BUILT)
        device.check_version(replace(BUILT, version="2.6.1"))
    else:
        with pytest.raises(EngineError, match=r"compiled by onnxruntime-qnn 2\.7\.0, .* is installed: run  pip"):
            device.check_version(BUILT)
