"""Which installed files are copied: of megrez its runtime and engines, of others what an extra requires and imports."""

import importlib.machinery
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path, PurePath

from megrez.runtime.errors import MegrezError

OWN = "megrez-compile"
# Relative to the folder of packages, to the file that is copied there.
Copies = dict[Path, Path]
# Required by metadata and imported by nothing here: tokenizers only downloads with huggingface-hub, and onnxruntime
# reads and writes models in Python with the others.
NOT_IMPORTED = frozenset({"huggingface-hub", "flatbuffers", "protobuf", "packaging"})
# Tools of packages. onnxruntime's Python module contains the library that its C API is in once more.
_LEFT_OUT = re.compile(
    r"numpy/(?:distutils|doc|f2py|random/_examples|testing|_core/include)/"
    r"|onnxruntime/(?:backend|datasets|quantization|tools|transformers)/|onnxruntime/capi/libonnxruntime\.so"
)
_FOLDERS_LEFT_OUT = frozenset({"__pycache__", "test", "tests"})
_SUFFIXES_LEFT_OUT = frozenset({".a", ".c", ".h", ".pxd", ".pyc", ".pyi", ".pyx"})
_METADATA = re.compile(r"METADATA|licenses/.*|(?:LICEN[CS]E|NOTICE|COPYING|AUTHORS).*", re.IGNORECASE)
_REQUIREMENT = re.compile(r"\s*([\w.-]+)\s*(?:\[([^\]]*)\])?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w.-]+)['\"]")


def find_distributions(extras: Sequence[str]) -> dict[str, Distribution]:
    """Megrez itself and what the extras require, by name. Raises MegrezError for one that is not installed."""
    found: dict[str, Distribution] = {}
    waiting = [(OWN, frozenset(extras))]
    while waiting:
        name, wanted = waiting.pop()
        if name not in found:
            found[name] = _distribution(name, extras)
        waiting += [one for one in _required(found[name], wanted) if one[0] not in found]
    return found


def package_files(distributions: Mapping[str, Distribution]) -> dict[str, Copies]:
    """What is copied of each distribution."""
    return {name: _own_files(one) if name == OWN else _files(one) for name, one in distributions.items()}


def _distribution(name: str, extras: Sequence[str]) -> Distribution:
    try:
        return importlib.metadata.distribution(name)
    except PackageNotFoundError as error:
        raise MegrezError(
            f"the folder needs {name}, which is not installed: run  pip install 'megrez-compile[{','.join(extras)}]'"
        ) from error


def _required(distribution: Distribution, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Names and extras. Markers other than extras are answered by what is installed, which pip decided by them."""
    for line in distribution.requires or []:
        requirement, _, marker = line.partition(";")
        named = _REQUIREMENT.match(requirement)
        chosen = _EXTRA.search(marker)
        if named is None or (chosen and chosen[1] not in extras):
            continue
        name = re.sub(r"[-_.]+", "-", named[1]).lower()
        without_extra = _EXTRA.sub("", marker).strip()
        if name not in NOT_IMPORTED and (not without_extra or _is_installed(name)):
            yield name, frozenset(part.strip() for part in (named[2] or "").split(",") if part.strip())


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _files(distribution: Distribution) -> Copies:
    copies = {}
    for file in distribution.files or []:
        source = Path(str(distribution.locate_file(file)))
        if _is_needed(file) and source.is_file():
            copies[Path(file)] = source
    return copies


def _is_needed(file: PurePath) -> bool:
    if ".." in file.parts or _FOLDERS_LEFT_OUT.intersection(file.parts):
        return False
    if file.parts[0].endswith(".dist-info"):
        return _METADATA.fullmatch(file.relative_to(file.parts[0]).as_posix()) is not None
    return file.suffix not in _SUFFIXES_LEFT_OUT and _LEFT_OUT.match(file.as_posix()) is None


def _own_files(distribution: Distribution) -> Copies:
    """An editable installation does not list its files."""
    copies = {file: source for file, source in _files(distribution).items() if file.parts[0].endswith(".dist-info")}
    for name in ("runtime", "engines"):
        spec = importlib.util.find_spec(f"megrez.{name}")
        assert spec is not None and spec.origin is not None
        folder = Path(spec.origin).parent
        for source in sorted(folder.rglob("*")):
            file = source.relative_to(folder)
            if source.is_file() and _is_own(file):
                copies[Path("megrez", name, file)] = source
    return copies


def _is_own(file: Path) -> bool:
    if file.suffix == ".so":  # other Pythons' may lie beside
        return file.name.endswith(importlib.machinery.EXTENSION_SUFFIXES[0]) or file.name.startswith("lib")
    return "include" in file.parts or (_is_needed(file) and file.name != "build_ext.py")
