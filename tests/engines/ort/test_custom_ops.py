"""When a session gets our own operators, and what is said where they cannot be had."""

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from megrez.engines.ort import custom_ops
from megrez.runtime.errors import EngineError, UsageError
from tests.engines.ort.own_kernels import needs_kernels


@needs_kernels
@pytest.mark.parametrize(
    ("setting", "registers"),
    [
        ("0", False),
        ("1", True),
        ("attention", True),
        ("avx2", True),
        ("vnni", True),
        ("avx512", True),
        ("portable", False),
    ],
)
def test_the_environment_decides(setting: str, registers: bool) -> None:
    code = "import onnxruntime; from megrez.engines.ort.custom_ops import register; "
    code += "print(register(onnxruntime.SessionOptions()))"
    environment = {**os.environ, custom_ops.SETTING: setting}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(registers)


def test_without_compiled_kernels_onnxruntime_keeps_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(custom_ops, "__file__", str(tmp_path / "custom_ops.py"))
    assert custom_ops.find_library() is None
    assert custom_ops.register(onnxruntime.SessionOptions()) is False


def test_a_cache_that_only_our_kernels_read_needs_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(custom_ops.SETTING, raising=False)
    monkeypatch.setattr(custom_ops, "__file__", str(tmp_path / "custom_ops.py"))
    with pytest.raises(EngineError, match="KV cache in int8, which needs our kernels"):
        custom_ops.register(onnxruntime.SessionOptions(), cache="int8")


@needs_kernels
def test_another_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(custom_ops.SETTING, "yes")
    valid = "0, 1, attention, avx2, vnni, avx512 and portable"
    with pytest.raises(UsageError, match=f"MEGREZ_KERNELS is 'yes', the valid values are {valid}"):
        custom_ops.register(onnxruntime.SessionOptions())


@needs_kernels
def test_attention_alone_leaves_products_to_onnxruntime() -> None:
    """Blocks of 512 are taken by ONNX Runtime's MatMulNBits and refused by ours."""
    code = "import tests.engines.ort.test_matmul_nbits as t; t.session(t.matrix(16, 512, 4, 512)); print('opened')"
    for setting, opens in (("attention", True), ("1", False)):
        environment = {**os.environ, custom_ops.SETTING: setting}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert ("opened" in done.stdout) is opens, done.stderr


@needs_kernels
def test_a_library_of_another_machine_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = custom_ops.find_library()
    assert library is not None
    monkeypatch.delenv(custom_ops.SETTING, raising=False)
    monkeypatch.setattr(custom_ops, "__file__", str(tmp_path / "custom_ops.py"))
    (tmp_path / library.name).write_bytes(b"not a library")
    with pytest.raises(
        EngineError, match=r"was compiled for another machine: .*: reinstall megrez-compile, or set MEGREZ_KERNELS=0"
    ):
        custom_ops.register(onnxruntime.SessionOptions())
