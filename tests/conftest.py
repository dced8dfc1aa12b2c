"""Tiny checkpoints, each written once per process, and both command lines run in this process."""

import gc
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

# For tiny models a second thread only spins. NumPy's BLAS and torch read these as they are imported, here and in what
# the tests start.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
Make = Callable[..., Path]
# Run in the background, this process may have been told to ignore Ctrl-C, and those it starts would be too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """tests.models.make_checkpoint without the folder: the same arguments give the same folder. Read only."""
    made: dict[str, Path] = {}

    def make(**shape: object) -> Path:
        from tests.models import make_checkpoint

        key = repr(sorted(shape.items()))
        if key not in made:
            made[key] = make_checkpoint(tmp_path_factory.mktemp("checkpoint"), **shape)  # type: ignore[arg-type]
        return made[key]

    return make


# torch and transformers are a million objects, which would be looked through again and again.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def folder_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where tests.graphs keeps what all processes of this test run share; those of pytest-xdist have folders beside."""
    own = tmp_path_factory.getbasetemp()
    os.environ["MEGREZ_TEST_RUN"] = str(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


@pytest.fixture
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever traces gets a copy of an earlier graph of the same shape: what is tested lies behind the tracing."""
    from tests.traces import traced

    monkeypatch.setattr("megrez.compile.graph.export.trace.trace", traced)


@pytest.fixture
def brief_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The beginning of the default calibration text stands for all of it, which takes 0.4 s to tokenise."""
    from pydoc_data.topics import topics

    beginning = {name: topics[name] for name in sorted(topics)[:12]}
    monkeypatch.setattr("pydoc_data.topics.topics", beginning)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def megrez_compile(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], traced_once: None, brief_text: None
) -> Callable[..., Done]:
    """The `megrez-compile` command: exit code, stdout and stderr. It reads little text unless it is told how much."""

    def run(*args: object) -> Done:
        from megrez.compile.cli import main

        staged = bool(args) and (Path(str(args[0])) / "manifest.json").exists()
        # What args say after them counts.
        brief = [] if staged else ["--calib-samples", "2", "--fidelity-tokens", "64"]
        monkeypatch.setattr(sys, "argv", ["megrez-compile", *brief, *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        told = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Done(code=caught.value.code, out=told.out, err=told.err)

    return run


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real model's file, named by the environment: `make slow` fetches it and sets SMOLLM2_GGUF."""
    path = os.environ.get("SMOLLM2_GGUF")
    if path is None:
        pytest.skip("SMOLLM2_GGUF names no file: run make slow")
    return Path(path)


@pytest.fixture(scope="session")
def compile_in_process() -> Callable[..., None]:
    """Compile a checkpoint to a bundle without the command line."""

    def run(model: Path, target: str, output: Path, *, context: int) -> None:
        from megrez.compile.checkpoint import open_checkpoint
        from megrez.compile.commands.console_report import ConsoleReport
        from megrez.compile.pipeline import Request, compile_bundle
        from megrez.engines.targets import find_target

        request = Request(
            checkpoint=open_checkpoint(str(model)),
            target=find_target(target),
            output=output,
            context=context,
        )
        compile_bundle(request, ConsoleReport())

    return run
