"""Opens MODEL: a folder, a GGUF file, a hub id, or a config.json with random weights; knows no file format."""

import os
import re
from pathlib import Path

from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.runtime.errors import CheckpointError, UsageError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def open_checkpoint(
    model: str,
    *,
    dummy_weights: bool = False,
    layers: int | None = None,
    seed: int = 0,
    revision: str | None = None,
) -> Checkpoint:
    """The checkpoint that `model` names.

    dummy_weights: seeded random weights in the shape of `model`, a config.json or a folder with one; `layers` then
    replaces its number of layers. revision: a branch, tag or commit of a hub id.
    Raises UsageError when the options do not fit together, CheckpointError when there is no usable checkpoint.
    """
    path = Path(model).expanduser()
    if layers is not None and not dummy_weights:
        raise UsageError("--layers changes the model's shape, so it works with --dummy-weights only: add it")
    if layers is not None and layers < 1:
        raise UsageError(f"--layers is {layers}: give 1 or more")
    if revision is not None and path.exists():
        raise UsageError(f"--revision is for hub ids, and {model} is a local path: leave it out")
    if dummy_weights:
        return _open_dummy(path, seed=seed, layers=layers)
    if path.suffix == ".json" and path.is_file():
        raise UsageError(f"{model} describes a model without weights: add --dummy-weights for random ones")
    return _open_stored(path, model, revision)


def _open_dummy(path: Path, *, seed: int, layers: int | None) -> Checkpoint:
    from megrez.compile.checkpoint.dummy import DummyCheckpoint

    config_file = path / "config.json" if path.is_dir() else path
    if config_file.suffix != ".json" or not config_file.is_file():
        raise UsageError(f"--dummy-weights needs a local config.json or a folder with one, {path} is neither")
    return DummyCheckpoint(config_file, source=_name(config_file.parent), seed=seed, layers=layers)


def _open_stored(path: Path, model: str, revision: str | None) -> Checkpoint:
    if path.suffix.lower() == ".gguf" and path.is_file():
        from megrez.compile.checkpoint.gguf.checkpoint import GgufCheckpoint

        return GgufCheckpoint(path, source=path.name)
    from megrez.compile.checkpoint.huggingface import HuggingFaceCheckpoint

    if path.is_dir():
        return HuggingFaceCheckpoint(path, source=_name(path))
    if path.is_file():
        raise CheckpointError(f"{model} has an unknown file type: name a folder, a .gguf file or a config.json")
    if not _can_be_hub_id(model):
        raise CheckpointError(f"{model} does not exist: name a folder, a .gguf file or a hub id such as owner/name")
    from megrez.compile.checkpoint.hub import download

    return HuggingFaceCheckpoint(download(model, revision=revision), source=model)


def _can_be_hub_id(model: str) -> bool:
    """Whether a string that is not a file may be a hub id, and not a mistyped path."""
    looks_local = model.startswith((".", "~", os.sep)) or model.endswith((os.sep, ".gguf", ".json", ".safetensors"))
    return not looks_local and HUB_ID.fullmatch(model) is not None and not Path(model).parent.is_dir()


def _name(folder: Path) -> str:
    return folder.resolve().name
