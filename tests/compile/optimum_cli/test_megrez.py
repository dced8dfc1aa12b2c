"""optimum's own command line finds our exporter and its errors are ours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from optimum.commands.optimum_cli import main

CLI = "from optimum.commands.optimum_cli import main; main()"


def optimum_cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CLI, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_export_megrez_writes_a_bundle(checkpoint_of, traced_once, monkeypatch, tmp_path: Path):
    arguments = ("export", "megrez", "-m", checkpoint_of(), "--target", "cpu-int8", "--context", 32, tmp_path / "b")
    monkeypatch.setattr(sys, "argv", ["optimum-cli", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert (manifest["target"], manifest["context_length"]) == ("cpu-int8", 32)


def test_export_megrez_refuses_as_megrez_compile_does(checkpoint_of, tmp_path: Path):
    done = optimum_cli("export", "megrez", "-m", checkpoint_of(), "--target", "cpu-int9", tmp_path / "b")
    assert done.returncode == 2
    assert "unknown target 'cpu-int9'" in done.stderr and "Traceback" not in done.stderr
