"""Which files of Python's standard library are copied: what the runtime never imports is left out."""

import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Names in the library's folder; config-* has the static library.
_LEFT_OUT = re.compile(
    r"(?:config-.*|curses|dbm|distutils|ensurepip|idlelib|lib2to3|msilib|pydoc\.py|pydoc_data|sitecustomize\.py|sqlite3"
    r"|tkinter|turtle\.py|turtledemo|unittest|venv|wsgiref|xmlrpc)"
)
_FOLDERS_LEFT_OUT = frozenset({"__pycache__", "test", "tests", "site-packages", "dist-packages"})
# Extension modules that only tests and the folders above need, or that need libraries of the system for nothing.
_EXTENSIONS_LEFT_OUT = re.compile(
    r"(?:_test|_xx|xx|_bz2|_crypt|_ctypes_test|_curses|_dbm|_gdbm|_lzma|_sqlite3|_tkinter|_uuid|nis|ossaudiodev"
    r"|readline|spwd)"
)


def standard_library() -> Path:
    """Its folder, of the Python that made this environment."""
    return Path(sysconfig.get_path("stdlib"))


def standard_files(folder: Path) -> Iterator[Path]:
    """Relative to the folder."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - _FOLDERS_LEFT_OUT)
        for name in sorted(names):
            path = Path(place, name)
            if path.is_file() and not _is_left_out(found := path.relative_to(folder)):
                yield found


def _is_left_out(name: Path) -> bool:
    if name.parts[0] == "lib-dynload":
        return _EXTENSIONS_LEFT_OUT.match(name.name) is not None
    return _LEFT_OUT.fullmatch(name.parts[0]) is not None
