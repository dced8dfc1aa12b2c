"""Names of bundles that nobody named."""

from pathlib import Path

import pytest

from megrez.compile.commands.default_output import default_output, model_name, output_of_staged
from megrez.runtime.errors import UsageError


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Infinigence/Megrez-3B-Instruct", "Megrez-3B-Instruct"),
        ("models/SmolLM2.Q4_1.gguf", "SmolLM2.Q4_1"),
        ("models/tiny/config.json", "tiny"),
        ("models/tiny/", "tiny"),
        (".", "here"),
        ("config.json", "here"),
    ],
)
def test_a_model_is_called_as_its_folder_file_or_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, name: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert model_name(model) == name


def test_a_staged_bundle_and_its_engine_have_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_output("a/tiny", "trt-fp8", staged=False) == Path("tiny-trt-fp8")
    assert default_output("a/tiny", "trt-fp8", staged=True) == Path("tiny-trt-fp8-onnx")
    assert output_of_staged("tiny-trt-fp8-onnx", "trt-fp8") == Path("tiny-trt-fp8")
    assert output_of_staged("graphs/mine", "trt-fp8") == Path("mine-trt-fp8")
    (tmp_path / "tiny-trt-fp8").write_text("mine")
    with pytest.raises(UsageError, match="tiny-trt-fp8 exists already"):
        default_output("a/tiny", "trt-fp8", staged=False)
