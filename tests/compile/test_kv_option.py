"""--kv: what a bundle states, and where it is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from megrez.compile.calibrate import cache_fidelity
from megrez.compile.cli import compile_command
from megrez.engines.targets import TARGETS, find_target
from megrez.runtime.commands.inspect import inspect_command
from megrez.runtime.errors import UsageError
from tests.engines.ort.own_kernels import needs_library


@needs_library
def test_an_int8_cache_is_stated_and_its_fidelity_measured(
    checkpoint_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traced_once: None
) -> None:
    monkeypatch.setattr(cache_fidelity, "CONTEXTS", (8, 16, 64))
    monkeypatch.setattr(cache_fidelity, "TOKENS", 24)
    bundle = tmp_path / "b"
    given = [str(checkpoint_of()), "--target", "cpu-fp32", "--context", "32", "--kv", "int8", "-o", str(bundle)]
    done = CliRunner().invoke(compile_command, given, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    cache = json.loads((bundle / "manifest.json").read_text())["kv_cache"]
    assert (cache["dtype"], cache["bytes_per_token"]) == ("int8", 2 * 2 * 2 * (32 + 4))
    assert (cache["scales"], cache["keys"]) == ("float32 per token and head", "Hadamard-transformed per head")
    assert [(one["context"], one["fidelity"]["tokens"]) for one in cache["fidelity"]] == [(8, 24), (16, 16)]
    assert all(0 < one["fidelity"]["kl_mean"] < 0.01 for one in cache["fidelity"])
    assert not list(tmp_path.glob(".*")), "the float32 graph is removed"
    shown = CliRunner().invoke(inspect_command, [str(bundle)], catch_exceptions=False).output
    assert "int8, scales float32 per token and head, keys Hadamard-transformed per head; 288 bytes a token" in shown
    assert "in 8 tokens; KL" in shown and "against a float32 cache" in shown


@needs_library
def test_the_fidelity_can_be_left_out(checkpoint_of: Any, tmp_path: Path, traced_once: None) -> None:
    bundle = tmp_path / "b"
    given = [str(checkpoint_of()), "--target", "cpu-fp32", "--kv", "f16", "--fidelity-tokens", "0", "-o", str(bundle)]
    assert CliRunner().invoke(compile_command, given, catch_exceptions=False).exit_code == 0
    cache = json.loads((bundle / "manifest.json").read_text())["kv_cache"]
    assert (cache["dtype"], cache["scales"], cache["keys"], cache["fidelity"]) == ("float16", None, None, [])


def test_f32_is_what_there_is_without_it() -> None:
    for name in ("cpu-fp32", "cpu-int4"):
        assert find_target(name).with_kv("f32").kv_dtype == find_target(name).kv_dtype == "float32"
    int8 = find_target("cpu-int4").with_kv("int8")
    assert (int8.kv_dtype, int8.float_dtype) == ("int8", "float32")


@pytest.mark.parametrize("name", [target.name for target in TARGETS if target.engine != "ort"])
def test_other_engines_have_no_choice(name: str) -> None:
    target = find_target(name)
    with pytest.raises(UsageError, match=f"--kv is for cpu-.* targets, the KV cache of {name} is {target.kv_dtype}"):
        target.with_kv("int8")


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    given = [str(tmp_path), "--target", "cpu-fp32", "--kv", "int4"]
    done = CliRunner().invoke(compile_command, given)
    assert done.exit_code == 2 and "'int4' is not one of 'f32', 'f16', 'int8'" in done.output
