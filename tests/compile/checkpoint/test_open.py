"""open_checkpoint takes each MODEL for what it is, and says so when the options do not fit it."""

from pathlib import Path

import pytest

from megrez.compile.checkpoint import open_checkpoint
from megrez.runtime.errors import CheckpointError, UsageError
from tests.models import make_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "tiny-llama")


@pytest.fixture
def hub_asked(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    asked: list[str] = []

    def download(model_id: str, *, revision: str | None) -> Path:
        asked.append(f"{model_id}@{revision}")
        return folder

    monkeypatch.setattr("megrez.compile.checkpoint.hub.download", download)
    return asked


def test_a_folder(folder: Path, hub_asked: list[str]) -> None:
    checkpoint = open_checkpoint(str(folder))
    checkpoint.check()
    assert checkpoint.source == "tiny-llama"
    assert not hub_asked


def test_a_folder_named_relatively_keeps_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert open_checkpoint(".").source == "tiny-llama"


def test_a_hub_id(hub_asked: list[str]) -> None:
    checkpoint = open_checkpoint("Infinigence/Megrez-3B-Instruct", revision="main")
    assert checkpoint.source == "Infinigence/Megrez-3B-Instruct"
    assert hub_asked == ["Infinigence/Megrez-3B-Instruct@main"]


@pytest.mark.parametrize(
    "model", ["./missing/model", "/no/such", "~/nowhere/x", "a/b/c", "missing.gguf", "model", "x/y.gguf"]
)
def test_a_path_that_is_not_there_stays_off_the_hub(hub_asked: list[str], model: str) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(model)
    assert not hub_asked


def test_a_missing_folder_beside_existing_ones_is_a_path(
    folder: Path, hub_asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent.parent)
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(f"{folder.parent.name}/tiny-lama")
    assert not hub_asked


def test_dummy_weights(folder: Path) -> None:
    for model in (folder, folder / "config.json"):
        checkpoint = open_checkpoint(str(model), dummy_weights=True, layers=3, seed=5)
        assert checkpoint.source == "tiny-llama"
        assert checkpoint.config.num_hidden_layers == 3
        assert checkpoint.read("model.layers.2.mlp.up_proj.weight").shape == (160, 96)


def test_options_that_do_not_fit(folder: Path) -> None:
    config = str(folder / "config.json")
    with pytest.raises(UsageError, match="without weights: add --dummy-weights"):
        open_checkpoint(config)
    with pytest.raises(UsageError, match="with --dummy-weights only"):
        open_checkpoint(str(folder), layers=2)
    with pytest.raises(UsageError, match="--layers is 0"):
        open_checkpoint(config, dummy_weights=True, layers=0)
    with pytest.raises(UsageError, match="--revision is for hub ids"):
        open_checkpoint(str(folder), revision="main")
    with pytest.raises(UsageError, match=r"needs a local config\.json"):
        open_checkpoint("owner/name", dummy_weights=True)


def test_a_file_of_another_kind(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="has an unknown file type"):
        open_checkpoint(str(folder / "model.safetensors"))
