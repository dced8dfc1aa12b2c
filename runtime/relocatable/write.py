"""Writes the folder: all its parts on one screen."""

import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from megrez.runtime.bundle import open_bundle
from megrez.runtime.errors import BundleError, UsageError
from megrez.runtime.manifest import FILE_NAME
from megrez.runtime.relocatable.bytecode import bytecode_of, write_bytecode
from megrez.runtime.relocatable.launch import program, site_customization
from megrez.runtime.relocatable.libraries import find_libraries, needed_glibc, remove_debug_information
from megrez.runtime.relocatable.packages import Copies, find_distributions, package_files
from megrez.runtime.relocatable.standard_library import standard_files, standard_library

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
BASE = Path(sys.base_prefix, "bin", PYTHON)
LIBRARY = Path("lib", PYTHON)
CAPI = Path("megrez", "runtime", "capi")


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """sizes: bytes of each part. machine: the architecture. glibc: the oldest that runs it. capi: has libmegrez."""

    sizes: dict[str, int]
    machine: str
    glibc: str
    capi: bool


def write_runtime(folder: Path, *, bundle: Path | None, serve: bool) -> Written:
    """Write `folder`, which must be new or empty; a run that is interrupted leaves nothing there.

    serve: with what `megrez serve` and guided output need. Raises UsageError, BundleError or MegrezError.
    """
    folder = folder.absolute()
    _check(folder, bundle)
    packages = _packages_folder(folder)
    parts = _plan(packages, bundle, ["cpu", "serve"] if serve else ["cpu"])
    binaries = [source for copies in parts.values() for source in copies.values() if _is_binary(source)]
    libraries = find_libraries(binaries)
    parts["shared libraries"] = {Path("lib", name): source for name, source in libraries.items()}
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        unfinished = Path(temporary, "folder")
        for copies in parts.values():
            _copy(copies, unfinished)
        remove_debug_information([unfinished / name for name in parts["Python"] if _is_of_python(name)])
        sizes = {name: sum(_bytes_of(unfinished / target) for target in copies) for name, copies in parts.items()}
        capi = _link(unfinished, packages / CAPI)
        _write_starters(unfinished, list(libraries))
        unfinished.rename(folder)
    glibc = needed_glibc([*binaries, *libraries.values()])
    return Written(sizes=sizes, machine=platform.machine(), glibc=glibc, capi=capi)


def _check(folder: Path, bundle: Path | None) -> None:
    if not sys.platform.startswith("linux"):
        raise UsageError(f"bundle-runtime writes folders for Linux, and this is {sys.platform}: run it there")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not empty: name another folder")
    if not folder.parent.is_dir():
        raise UsageError(f"there is no folder {folder.parent}: create it, or name another")
    engine = "ort" if bundle is None else open_bundle(bundle).manifest.engine
    if engine != "ort":
        raise BundleError(f"the bundle {bundle} needs the engine {engine!r}, and the folder has ort: give one of cpu-*")


def _packages_folder(folder: Path) -> Path:
    """Where this Python looks for packages if it lies in `folder`; relative to that."""
    ask = "import site, sys; print(site.getsitepackages([sys.argv[1]])[-1])"
    done = subprocess.run([BASE, "-I", "-c", ask, folder], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip()).relative_to(folder)


def _plan(packages: Path, bundle: Path | None, extras: list[str]) -> dict[str, Copies]:
    """Parts by name: targets relative to the folder, and the files that are copied there."""
    library = standard_library()
    standard = {LIBRARY / name: library / name for name in standard_files(library)}
    shared = Path(str(sysconfig.get_config_var("LIBDIR")), str(sysconfig.get_config_var("INSTSONAME")))
    if shared.name.startswith("libpython") and ".so" in shared.name and shared.exists():
        standard[Path("lib", shared.name)] = shared
    parts = {"Python": {Path("bin", PYTHON): BASE, **standard}}
    for name, copies in package_files(find_distributions(extras)).items():
        parts[name] = {packages / target: source for target, source in copies.items()}
    if bundle is not None:
        names = [FILE_NAME, *(file.path for file in open_bundle(bundle).manifest.files)]
        parts["the bundle"] = {Path("bundle", name): bundle / name for name in names}
    return parts


def _copy(copies: Copies, folder: Path) -> None:
    for name, source in copies.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
        if target.suffix == ".py":
            write_bytecode(source, target)


def _bytes_of(target: Path) -> int:
    """With its bytecode."""
    compiled = [bytecode_of(target)] if target.suffix == ".py" else []
    return sum(path.stat().st_size for path in (target, *compiled))


def _is_binary(source: Path) -> bool:
    with source.open("rb") as stream:
        return stream.read(4) == b"\x7fELF"


def _is_of_python(name: Path) -> bool:
    """Its programs and libraries: those of packages were edited after linking, which strip does not survive."""
    return "lib-dynload" in name.parts or name.parts[:-1] in (("bin",), ("lib",))


def _link(folder: Path, capi: Path) -> bool:
    """Where C programs look for the C API; whether it is there."""
    if not (folder / capi / "libmegrez.so").exists() or not list(folder.glob("lib/libpython*")):
        return False
    (folder / "include").mkdir()
    for link, target in (("lib", "libmegrez.so"), ("include", "include/megrez.h"), ("include", "include/megrez.hpp")):
        (folder / link / Path(target).name).symlink_to(Path("..", capi, target))
    return True


def _write_starters(folder: Path, libraries: list[str]) -> None:
    (folder / LIBRARY / "sitecustomize.py").write_text(site_customization(libraries), encoding="utf-8")
    starter = folder / "bin" / "megrez"
    starter.write_text(program(PYTHON), encoding="utf-8")
    starter.chmod(0o755)
