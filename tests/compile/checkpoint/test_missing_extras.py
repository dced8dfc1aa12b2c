"""Without an optional library, the one line that installs it; with none of them, folders and dummies still open."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import make_checkpoint

SCRIPT = """
import sys
for name in ("gguf", "huggingface_hub", "safetensors", "torch", "transformers", "onnx", "onnxruntime"):
    sys.modules[name] = None
from megrez.compile.checkpoint import open_checkpoint
from megrez.runtime.errors import MissingExtraError
try:
    checkpoint = open_checkpoint(sys.argv[1], dummy_weights=len(sys.argv) > 2)
    checkpoint.check()
    print(checkpoint.read("model.norm.weight").shape)
except MissingExtraError as error:
    print(error)
"""


def run(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize("arguments", [(), ("dummy",)])
def test_folders_need_no_extra(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert run(str(make_checkpoint(tmp_path)), *arguments) == "(96,)"


def test_gguf_names_its_extra(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    assert run(str(path)) == (
        "reading a .gguf file needs gguf, which is not installed: run  pip install 'megrez-compile[export]'"
    )


def test_the_hub_names_its_extra() -> None:
    assert "downloading owner/name needs huggingface_hub" in run("owner/name")
