"""A package that is not listed in pyproject.toml works editable and is silently left out of the wheel."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP = ["runtime", "engines", "calibration", "compile"]
# A namespace of optimum's, where an __init__.py would hide the packages of others.
NAMESPACES = {"optimum.commands.register": "compile/optimum_cli"}


def test_pyproject_lists_exactly_the_packages_of_the_tree():
    tomllib = pytest.importorskip("tomllib")
    folders = {path.parent.relative_to(ROOT) for top in TOP for path in (ROOT / top).rglob("__init__.py")}
    expected = {f"megrez.{'.'.join(folder.parts)}": folder.as_posix() for folder in folders} | NAMESPACES
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-dir"] == expected
    assert sorted(settings["packages"]) == sorted(expected)


def test_every_folder_with_modules_is_a_package():
    bare = {
        str(path.parent.relative_to(ROOT))
        for top in TOP
        for path in (ROOT / top).rglob("*.py")
        if not (path.parent / "__init__.py").exists()
    }
    assert bare == set(NAMESPACES.values())


@pytest.mark.parametrize("folder", ["engines/ort/kernels", "runtime/capi"])
def test_pyproject_lists_every_c_file(folder):
    tomllib = pytest.importorskip("tomllib")
    libraries = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    (library,) = (one for one in libraries if one["sources"][0].startswith(folder))
    assert library["optional"] is True
    for listed, pattern in (("sources", "*.c"), ("depends", "*.h")):
        there = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(pattern)}
        assert set(library[listed]) == there


def test_every_c_file_belongs_to_a_library():
    folders = ("engines/ort/kernels", "runtime/capi")
    there = [path.relative_to(ROOT).as_posix() for top in TOP for path in (ROOT / top).rglob("*.[ch]")]
    assert [path for path in there if not path.startswith(folders)] == []
