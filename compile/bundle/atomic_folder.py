"""A folder that appears whole or not at all; knows nothing of what is in it."""

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

MARK = ".partial-"
OLD = "-old"


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a fresh sibling of `path` to write into; on success it becomes `path`, on any failure it is removed.

    An older `path` stays until the new one is whole. Siblings left by processes that were killed are removed, but for
    an older `path` that one of them had just set aside: it gets its name back.
    """
    path = path.resolve()  # through a link, its goal is replaced and the link stays
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
    shutil.rmtree(old, ignore_errors=True)  # the new one is there: what is left of the old is removed next time


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
    """Whether `pid` is running and is not this process; in a container, a killed run had the same number."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
