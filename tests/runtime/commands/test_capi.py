"""`megrez capi`: what it prints compiles programs, where the library was compiled."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from megrez.runtime.cli import VERBS
from megrez.runtime.commands import capi

FOLDER = Path(capi.__file__).parents[1] / "capi"  # of the checkout, or of an installation


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    library = tmp_path / "libmegrez.so"
    library.touch()
    monkeypatch.setattr(capi, "LIBRARY", library)
    return library


def run(*options):
    return CliRunner().invoke(capi.capi_command, options)


def test_flags_and_folders(compiled):
    flags = run("--cflags", "--libs").output.split()
    assert flags == [f"-I{FOLDER / 'include'}", f"-L{FOLDER}", "-lmegrez", f"-Wl,-rpath,{FOLDER}"]
    assert (FOLDER / "include" / "megrez.h").exists()
    assert run("--library").output == f"{compiled}\n"
    assert (Path(run("--pkgconfig").output.strip()) / "megrez.pc").exists()
    assert (Path(run("--cmake").output.strip()) / "megrez-config.cmake").exists()


def test_without_options_everything_is_listed(compiled):
    lines = run().output.splitlines()
    assert [line.split()[0] for line in lines] == ["--cflags", "--libs", "--library", "--pkgconfig", "--cmake"]


def test_a_library_that_was_not_compiled_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(capi, "LIBRARY", tmp_path / "libmegrez.so")
    assert "was not compiled: install a C compiler" in str(run("--libs").exception)
    assert run("--cflags").exit_code == 0
    assert run().output.count("not compiled") == 2


def test_it_is_a_verb():
    assert VERBS["capi"].target == "megrez.runtime.commands.capi:capi_command"
