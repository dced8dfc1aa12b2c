"""Transparent huge pages for the weights, which every token reads: fewer TLB misses.

Most Linux systems give huge pages on request only ("madvise"). glibc requests them for its large blocks, where ONNX
Runtime's kernels keep the weights, if a tunable is set when the program starts: too early for `main` to set it. Our
kernels read the mapped file, which has small pages; with the tunable they copy the weights (engines/ort/kernels/
huge_pages.c). Source: glibc's manual, "Memory Allocation Tunables". Independent of engines.
"""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_TUNABLES, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_SINCE = (2, 35)
# Bytes. Kernels with 64 KiB pages have huge pages of 512 MiB, to which glibc would round its heap up.
_LARGEST = 2 << 20


def restart_with_huge_pages() -> None:
    """Restart this program in the same process if that gives it huge pages; otherwise return.

    Call it before anything is read, printed or imported: all of that would happen twice.
    """
    environment = wanted_environment(os.environ, _libc())
    if environment is not None and sys.executable:
        with contextlib.suppress(OSError):  # without huge pages it is slower, nothing more
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def wanted_environment(environment: Mapping[str, str], libc: str, root: Path = Path("/")) -> dict[str, str] | None:
    """The environment that requests huge pages; None if it has no effect here, or the user has set the tunable.

    libc: its name and version, as in "glibc 2.36". root: where /sys is found.
    """
    tunables = [text for text in environment.get(_TUNABLES, "").split(":") if text]
    decided = any(text.partition("=")[0] == _TUNABLE for text in tunables)
    if decided or not _takes_tunable(libc) or not _gives_on_request(root):
        return None
    return {**environment, _TUNABLES: ":".join([*tunables, f"{_TUNABLE}=1"])}


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):  # Windows; other C libraries than glibc
        return ""


def _takes_tunable(libc: str) -> bool:
    name, _, version = libc.partition(" ")
    numbers = version.split(".")[:2]
    return name == "glibc" and all(map(str.isdecimal, numbers)) and tuple(map(int, numbers)) >= _SINCE


def _gives_on_request(root: Path) -> bool:
    """Whether the kernel's mode is "madvise" and its huge pages are not too large."""
    folder = root / "sys/kernel/mm/transparent_hugepage"
    with contextlib.suppress(OSError, ValueError):
        chosen, size = ((folder / name).read_text(encoding="ascii") for name in ("enabled", "hpage_pmd_size"))
        return "[madvise]" in chosen and int(size) <= _LARGEST
    return False
