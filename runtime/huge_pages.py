"""Huge pages for the weights that a program reads token by token: fewer misses in the translation of addresses.

Linux mostly gives them to whoever asks ("madvise"). glibc asks for its large blocks, in which ONNX Runtime keeps the
weights, if a tunable says so as a program starts: it is too late for that in `main`. Source: glibc's manual, "Memory
Allocation Tunables". Knows no engine.
"""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_TUNABLES, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_SINCE = (2, 35)
# Bytes. Kernels of 64 KiB pages have huge ones of 512 MiB, and glibc would round its heap up to them.
_LARGEST = 2 << 20


def restart_with_huge_pages() -> None:
    """Start this program anew, in this very process, where that gives it huge pages; else return.

    Before anything is read, printed or imported that costs time: all of it would happen twice.
    """
    environment = wanted_environment(os.environ, _libc())
    if environment is not None and sys.executable:
        with contextlib.suppress(OSError):  # slower is all that it is without
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def wanted_environment(environment: Mapping[str, str], libc: str, root: Path = Path("/")) -> dict[str, str] | None:
    """The environment that asks for huge pages; None where it would change nothing, or somebody has decided already.

    libc: its name and version, as in "glibc 2.36". root: where /sys is found.
    """
    tunables = [text for text in environment.get(_TUNABLES, "").split(":") if text]
    decided = any(text.partition("=")[0] == _TUNABLE for text in tunables)
    if decided or not _takes_tunable(libc) or not _gives_who_asks(root):
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


def _gives_who_asks(root: Path) -> bool:
    """The kernel gives huge pages of a fair size to whoever asks, and neither to all nor to nobody."""
    folder = root / "sys/kernel/mm/transparent_hugepage"
    with contextlib.suppress(OSError, ValueError):
        chosen, size = ((folder / name).read_text(encoding="ascii") for name in ("enabled", "hpage_pmd_size"))
        return "[madvise]" in chosen and int(size) <= _LARGEST
    return False
