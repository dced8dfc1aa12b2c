"""What is copied and what is left out, by the metadata of distributions that are made up."""

import importlib.metadata
import importlib.util
import os
import py_compile
import shutil
from pathlib import Path, PurePosixPath

import pytest

from megrez.runtime.errors import MegrezError
from megrez.runtime.relocatable import packages
from megrez.runtime.relocatable.bytecode import bytecode_of, write_bytecode
from megrez.runtime.relocatable.standard_library import standard_files


class Installed:
    def __init__(self, requires=(), files=()):
        self.requires, self.files = list(requires), [PurePosixPath(file) for file in files]

    def locate_file(self, file):
        return Path(self.folder, file)


@pytest.fixture
def installed(monkeypatch):
    """Installs made-up distributions, by name."""

    def install(**made):
        def find(name):
            if name not in made:
                raise importlib.metadata.PackageNotFoundError(name)
            return made[name]

        monkeypatch.setattr(importlib.metadata, "distribution", find)
        monkeypatch.setattr(packages, "OWN", "own")

    return install


def test_requirements_are_followed_by_extras_and_by_what_is_installed(installed):
    installed(
        own=Installed(["a[fast]>=2", 'b; extra == "cpu"', 'c>1; extra == "serve"', "d; python_version < '3'"]),
        a=Installed(['E_e.x ; extra == "fast"', "huggingface-hub<2"]),
        b=Installed(["a", 'f; sys_platform == "linux" and extra == "cpu"']),
        **{"e-e-x": Installed()},
    )
    assert set(packages.find_distributions(["cpu"])) == {"own", "a", "b", "e-e-x"}


def test_what_is_required_and_missing_is_named_with_its_extra(installed):
    installed(own=Installed(['b; extra == "cpu"']))
    with pytest.raises(MegrezError, match=r"needs b, which is not installed: run  pip install 'megrez-compile\[cpu\]'"):
        packages.find_distributions(["cpu"])


def test_tools_tests_and_headers_stay_behind_and_licences_do_not(tmp_path):
    kept = ["numpy/core.py", "numpy/_core/x.so", "numpy-2.dist-info/METADATA", "numpy-2.dist-info/licenses/a/LICENSE"]
    left = ["../../bin/f2py", "numpy/tests/t.py", "numpy/f2py/a.py", "numpy/x.pyi", "numpy-2.dist-info/RECORD"]
    left += ["onnxruntime/capi/libonnxruntime.so.1", "onnxruntime/tools/a.py", "numpy/__pycache__/core.pyc"]
    for name in (*kept, *left):
        path = tmp_path / "packages" / "here" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    one = Installed(files=[*kept, *left, "numpy/missing.py"])
    one.folder = tmp_path / "packages" / "here"
    assert sorted(map(str, packages.package_files({"numpy": one})["numpy"])) == sorted(kept)


def test_the_standard_library_without_its_tests_tools_and_other_packages(tmp_path):
    kept = ["json/__init__.py", "lib-dynload/_json.so", "os.py"]
    left = ["test/a.py", "json/tests/a.py", "site-packages/torch.py", "tkinter/a.py", "config-3.11-x/a", "sqlite3/a.py"]
    for name in (*kept, *left, "lib-dynload/_sqlite3.so", "lib-dynload/_testcapi.so", "__pycache__/os.pyc"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert sorted(map(str, standard_files(tmp_path))) == kept


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("cached", [True, False])
def test_bytecode_is_valid_whatever_the_times_of_files(tmp_path, cached):
    source, target = tmp_path / "one.py", tmp_path / "two.py"
    source.write_text("WORD = 'as compiled'\n")
    if cached:
        py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
    write_bytecode(source, target)
    target.write_text("WORD = 'as in the source, which nobody reads'\n")
    os.utime(target, (1, 1))
    module = load(target)
    assert module.WORD == "as compiled" and Path(module.__cached__) == bytecode_of(target)


def test_bytecode_of_another_source_is_not_taken(tmp_path):
    source, target = tmp_path / "one.py", tmp_path / "two.py"
    source.write_text("WORD = 1\n")
    py_compile.compile(str(source))
    source.write_text("WORD = 22\n")
    write_bytecode(source, target)
    assert load(shutil.copy(source, target)).WORD == 22
