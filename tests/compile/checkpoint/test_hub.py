"""The hub's answers, and its silence, as one line each; the hub library is replaced, no network is used."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from megrez.compile.checkpoint.hub import download
from megrez.runtime.errors import CheckpointError


def answer(monkeypatch: pytest.MonkeyPatch, result: Exception | str) -> dict[str, Any]:
    asked: dict[str, Any] = {}

    def snapshot_download(
        model_id: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        asked.update(model_id=model_id, revision=revision)
        asked.update(allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_asks_for_data_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = answer(monkeypatch, str(tmp_path))
    assert download("owner/name", revision="v2") == tmp_path
    assert asked["model_id"] == "owner/name"
    assert asked["revision"] == "v2"
    assert set(asked["allow_patterns"]) == {"*.safetensors", "*.json", "*.jinja"}
    assert asked["ignore_patterns"] == ["*consolidated*"]  # the weights of model-*.safetensors once more


RESPONSE: Any = SimpleNamespace(headers={}, request=None)  # all that the hub's errors ask of one


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (errors.RepositoryNotFoundError("no\nsuch", response=RESPONSE), "was not found on the hub"),
        (errors.GatedRepoError("gated", response=RESPONSE), "is gated"),
        (errors.RevisionNotFoundError("rev", response=RESPONSE), "correct the revision"),
        (errors.LocalEntryNotFoundError("nothing cached"), "could not be reached"),
        (errors.OfflineModeIsEnabled("offline"), "could not be reached"),
        (ConnectionError("no route"), "could not be reached"),
        (errors.HFValidationError("bad"), "neither a local path nor a hub id"),
    ],
)
def test_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, told: str) -> None:
    answer(monkeypatch, error)
    with pytest.raises(CheckpointError) as caught:
        download("owner/name", revision=None)
    message = str(caught.value)
    assert told in message
    assert "owner/name" in message
    assert "\n" not in message
