"""A compilation that is killed in mid-write leaves nothing that opens; the next one sweeps up and works."""

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megrez.compile.checkpoint import open_checkpoint
from megrez.runtime.bundle import open_bundle
from megrez.runtime.errors import BundleError
from tests.forks import COMPILER, Forked, forks
from tests.traces import traced

# As much of a bundle as one has to be to be replaced.
OLDER = '{"schema_version": 1, "files": []}'
LOCK = ".b.lock"
MAIN = str(Path(__file__).with_name("slow_main.py"))


def request(config: Path, output: Path) -> tuple[str, ...]:
    return (str(config), "--target", "cpu-int4", "--dummy-weights", "--layers", "1", "-o", str(output), "--json")


@pytest.fixture
def config(checkpoint_of: Any) -> Path:
    folder: Path = checkpoint_of()
    return folder / "config.json"


@pytest.fixture
def writing(config: Path, tmp_path: Path) -> Iterator[tuple[Forked, Path]]:
    """A compilation that has written some of its weights, and its output, over which an older bundle lies."""
    output = tmp_path / "b"
    output.mkdir()
    (output / "manifest.json").write_text(OLDER)
    traced(replace(open_checkpoint(str(config.parent)).config, num_hidden_layers=1, sliding_windows=(None,)))
    process = forks(COMPILER).start(MAIN, request(config, output))
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    (partial,) = (path for path in tmp_path.iterdir() if path not in (output, output.with_name(LOCK)))
    assert (partial / "model.onnx.data").stat().st_size > 0
    yield process, output
    process.kill()
    process.wait()


def test_killed(writing: tuple[Forked, Path], config: Path, megrez_compile: Any) -> None:
    process, output = writing
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    remains = [path for path in output.parent.iterdir() if path not in (output, output.with_name(LOCK))]
    assert len(remains) == 1
    with pytest.raises(BundleError):
        open_bundle(remains[0])
    assert (output / "manifest.json").read_text() == OLDER
    again = megrez_compile(*request(config, output))
    assert again.code == 0, again.err
    assert json.loads(again.out)["bundle"] == str(output)
    assert list(output.parent.iterdir()) == [output]
    assert open_bundle(output, verify=True).manifest.architecture.num_hidden_layers == 1


def test_a_second_build_of_the_same_output_is_refused_and_ctrl_c_leaves_the_older_bundle(
    writing: tuple[Forked, Path], config: Path, megrez_compile: Any
) -> None:
    process, output = writing
    before = sorted(path.name for path in output.parent.iterdir())
    second = megrez_compile(*request(config, output))
    assert (second.code, second.out) == (2, "")
    assert second.err == f"error: {output} is being built by another process: wait for it or choose another -o\n"
    assert process.runs() and sorted(path.name for path in output.parent.iterdir()) == before
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err and "error" not in err
    assert list(output.parent.iterdir()) == [output]
    assert (output / "manifest.json").read_text() == OLDER
