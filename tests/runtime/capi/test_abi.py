"""What programs that are compiled already rely on: it may grow, and never change."""

import ctypes
import re
import subprocess
from pathlib import Path

import pytest

from tests.runtime.capi import driver, header
from tests.runtime.capi.conftest import CAPI, ROOT

LISTED = (Path(__file__).parent / "abi.txt").read_text(encoding="utf-8")
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", f"-I{header.INCLUDE}"]


def test_the_abi_is_the_one_that_is_checked_in(compiler):
    assert header.abi() == LISTED, "an ABI break, unless only lines were added: then run the command of header.py"


def test_the_library_exports_the_functions_of_the_header_and_nothing_else(library):
    names = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    exported = {line.split()[-1] for line in names.splitlines()}
    declared = {re.search(r"(\w+)\(", one)[1] for one in header.functions()}
    assert exported == declared == set(driver.SIGNATURES)


def test_the_library_needs_no_python_to_be_loaded(library):
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"NEEDED.*python", needed)


@pytest.mark.parametrize("struct", [driver.Piece, driver.Usage, driver.Stats])
def test_the_drivers_structs_are_the_headers(struct):
    name = f"megrez_{struct.__name__.lower()}"
    lines = [f"{name} {ctypes.sizeof(struct)}"]
    for field, _ in struct._fields_:
        found = getattr(struct, field)
        lines.append(f"{name}.{field} at {found.offset} of {found.size}")
    assert [line for line in LISTED.splitlines() if re.match(rf"{name}[. ]\S", line) and "(" not in line] == lines


@pytest.mark.parametrize("language", [["-x", "c", "-std=c99"], ["-x", "c++", "-std=c++11"]])
def test_the_header_compiles_alone(compiler, language):
    subprocess.run([compiler, *language, *STRICT, "-"], input="#include <megrez.h>\n", text=True, check=True)


def test_files_for_build_systems_state_the_packages_version():
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert f"Version: {version}\n" in (CAPI / "pkgconfig" / "megrez.pc").read_text()
    assert f"PACKAGE_VERSION {version})" in (CAPI / "cmake" / "megrez-config-version.cmake").read_text()


def test_the_guides_program_compiles(compiler):
    (program,) = re.findall(r"```c\n(.*?)```", (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8"), re.DOTALL)
    subprocess.run([compiler, "-x", "c", "-std=c99", *STRICT, "-"], input=program, text=True, check=True)
