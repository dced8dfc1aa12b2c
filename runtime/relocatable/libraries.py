"""Which shared libraries of this machine a folder of binaries needs, beside the C library."""

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from megrez.runtime.errors import MegrezError

# Of glibc: a device has its own.
_C_LIBRARY = re.compile(
    r"(?:ld-linux.*|ld64|libanl|libc|libdl|libm|libmvec|libnsl|libnss_.*|libpthread|libresolv|librt|libthread_db"
    r"|libutil)\.so.*"
)
_FOUND = re.compile(r"^\s+(\S+) => (/\S+) \(0x", re.MULTILINE)
_NOT_FOUND = re.compile(r"^\s+(\S+) => not found", re.MULTILINE)
_GLIBC = re.compile(rb"GLIBC_2\.(\d+)")


def find_libraries(binaries: Iterable[Path]) -> dict[str, Path]:
    """Names to files, of what is not among the binaries itself; what others need comes first."""
    own = [binary.resolve() for binary in binaries]
    found = {
        name: path for name, path in _needed(own).items() if path.resolve() not in own and not _C_LIBRARY.match(name)
    }
    # ldd lists what a library needs, and what those need: each more than any of them.
    needs = {name: len(_needed([path])) for name, path in found.items()}
    return {name: found[name] for name in sorted(found, key=lambda one: (needs[one], one))}


def needed_glibc(binaries: Iterable[Path]) -> str:
    """The newest version of glibc's symbols that they name."""
    minors = [int(minor) for binary in binaries for minor in _GLIBC.findall(binary.read_bytes())]
    return f"2.{max(minors, default=0)}"


def remove_debug_information(binaries: Sequence[Path]) -> None:
    """With binutils' strip; they stay as they are where that is not installed."""
    if shutil.which("strip"):
        subprocess.run(["strip", "--strip-debug", *map(str, binaries)], check=True, capture_output=True)


def _needed(binaries: Sequence[Path]) -> dict[str, Path]:
    try:
        done = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise MegrezError("ldd is not installed, which finds shared libraries: install glibc's tools") from error
    if missing := _NOT_FOUND.search(done.stdout):
        raise MegrezError(f"Python or a package needs {missing[1]}, which this machine does not have: install it")
    return {name: Path(path) for name, path in _FOUND.findall(done.stdout)}
