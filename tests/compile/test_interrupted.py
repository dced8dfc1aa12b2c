"""A compilation that is killed in mid-write leaves nothing that opens; the next one sweeps up and works."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megrez.runtime.bundle import open_bundle
from megrez.runtime.errors import BundleError

# As much of a bundle as one has to be to be replaced.
OLDER = '{"schema_version": 1, "files": []}'
LOCK = ".b.lock"
MAIN = str(Path(__file__).with_name("slow_main.py"))


def start(config: Path, output: Path, mode: str) -> subprocess.Popen[str]:
    arguments = [config, "--target", "cpu-int4", "--dummy-weights", "--layers", 1, "-o", output, "--json"]
    return subprocess.Popen(
        [sys.executable, MAIN, mode, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


@pytest.fixture
def writing(checkpoint_of: Any, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A compilation that has written some of its weights, and its output, over which an older bundle lies."""
    config, output = checkpoint_of() / "config.json", tmp_path / "b"
    output.mkdir()
    (output / "manifest.json").write_text(OLDER)
    process = start(config, output, "wait")
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    (partial,) = (path for path in tmp_path.iterdir() if path not in (output, output.with_name(LOCK)))
    assert (partial / "model.onnx.data").stat().st_size > 0
    yield process, output
    process.kill()
    process.wait()


def test_killed(writing: tuple[subprocess.Popen[str], Path], checkpoint_of: Any) -> None:
    process, output = writing
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    remains = [path for path in output.parent.iterdir() if path not in (output, output.with_name(LOCK))]
    assert len(remains) == 1
    with pytest.raises(BundleError):
        open_bundle(remains[0])
    assert (output / "manifest.json").read_text() == OLDER
    again = start(checkpoint_of() / "config.json", output, "go")
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert json.loads(out)["bundle"] == str(output)
    assert list(output.parent.iterdir()) == [output]
    assert open_bundle(output, verify=True).manifest.architecture.num_hidden_layers == 1


def test_a_second_build_of_the_same_output_is_refused(
    writing: tuple[subprocess.Popen[str], Path], checkpoint_of: Any
) -> None:
    process, output = writing
    before = sorted(path.name for path in output.parent.iterdir())
    second = start(checkpoint_of() / "config.json", output, "go")
    out, err = second.communicate(timeout=120)
    assert (second.returncode, out) == (2, "")
    assert err == f"error: {output} is being built by another process: wait for it or choose another -o\n"
    assert process.poll() is None and sorted(path.name for path in output.parent.iterdir()) == before


def test_interrupted(writing: tuple[subprocess.Popen[str], Path]) -> None:
    process, output = writing
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err and "error" not in err
    assert list(output.parent.iterdir()) == [output]
    assert (output / "manifest.json").read_text() == OLDER
