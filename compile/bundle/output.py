"""Checks and locks the path of a bundle: replaceable, writable, with enough disk space, used by one build at a time."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from megrez.runtime.errors import BundleError, UsageError, first_line
from megrez.runtime.manifest import FILE_NAME, stated_files

# Graph, tokenizer and manifest on top of the weights.
SMALL_FILES = 64 << 20


def check_output(output: Path) -> None:
    """Raise UsageError where `output` exists and is not a bundle, contains the current folder, or cannot be written."""
    try:
        if Path.cwd().is_relative_to(output.resolve()):
            raise UsageError(f"{output} is the current folder or contains it: choose another -o")
        if output.exists() and not _may_be_replaced(output):
            raise UsageError(f"{output} exists and is not a bundle: choose another -o or remove it")
        parent = _existing_parent(output)
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError
        raise UsageError(f"-o {output} cannot be used ({first_line(error)}): choose another") from error
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(
            f"-o {output} cannot be written, {parent} is not a folder that you can write to: choose another"
        )


def _may_be_replaced(output: Path) -> bool:
    """Whether it is an empty folder, or a bundle without files that its manifest does not list."""
    if not output.is_dir():
        return False
    if not any(output.iterdir()):
        return True
    try:
        stated = stated_files((output / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return False
    if stated is None:
        return False
    found = (path.relative_to(output).as_posix() for path in output.rglob("*") if not path.is_dir())
    return all(name == FILE_NAME or name in stated for name in found)


def _existing_parent(output: Path) -> Path:
    return next(folder for folder in output.absolute().parents if folder.exists())


def check_space(output: Path, weight_bytes: int, needs: str = "the bundle needs") -> None:
    """Raise BundleError if the disk cannot hold the bundle. needs: the beginning of the message."""
    parent = _existing_parent(output)
    free, needed = shutil.disk_usage(parent).free, weight_bytes + SMALL_FILES
    if free < needed:
        raise BundleError(
            f"{needs} {needed / 1e9:.1f} GB and the disk of {output} has {free / 1e9:.1f} GB free: "
            "free some space or choose another -o"
        )


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Lock `output` for one build; raises UsageError while another build, of any process, has the lock.

    An flock on a file beside `output`, which the system releases when a process is killed. On Windows, and on file
    systems without flock, nothing is locked: there, the last of two simultaneous builds wins.
    """
    if sys.platform == "win32":
        yield
        return
    path = output.resolve()
    file = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(file)
    except OSError as error:
        raise BundleError(f"{output} cannot be written ({error.strerror}): choose another -o") from error
    if descriptor is None:
        raise UsageError(f"{output} is being built by another process: wait for it or choose another -o")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # while locked, so that nobody else has locked this file
        os.close(descriptor)


def _lock(path: Path) -> int | None:
    """The descriptor of the locked file; None where another process has the lock."""
    import fcntl  # not on Windows

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # its last holder has removed it
