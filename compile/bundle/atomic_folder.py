"""Write a folder atomically; knows nothing of its content."""

import contextlib
import glob
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

MARK = ".partial-"
OLD = "-old"


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty sibling of `path`; on success it is renamed to `path`, on any failure it is removed.

    An existing `path` stays until the new one is complete. Siblings left by killed processes are removed, except for a
    `path` that one of them had renamed: it gets its name back.
    """
    path = path.resolve()  # of a link, the target is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    partial = path.with_name(f".{path.name}{MARK}{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        _swap(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(new: Path, path: Path) -> None:
    if not path.exists():
        new.rename(path)
        return
    old = path.with_name(f".{path.name}{MARK}{os.getpid()}{OLD}")
    path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)  # what remains is removed next time


def _remove_abandoned(path: Path) -> None:
    for sibling in path.parent.glob(f".{glob.escape(path.name)}{MARK}*"):
        pid = sibling.name.rpartition(MARK)[2].partition("-")[0]
        if not pid.isdigit() or _is_another(int(pid)):
            continue
        if sibling.name.endswith(OLD) and not path.exists():
            sibling.rename(path)
        else:
            shutil.rmtree(sibling, ignore_errors=True)


def _is_another(pid: int) -> bool:
    """Whether `pid` is another running process; in a container, a killed run may have had this one's pid."""
    if pid == os.getpid():
        return False
    if sys.platform == "win32":
        return True  # unknown: os.kill would send it Ctrl-C, so nothing is removed
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
