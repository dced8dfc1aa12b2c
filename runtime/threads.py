"""The default number of threads of an engine on this machine, from Linux's /sys and /proc; independent of engines."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def default_threads(root: Path = Path("/"), affinity: Iterable[int] | None = None) -> int:
    """Physical cores that this process may run on, limited by its cgroup's CPU quota; at least 1.

    root: the folder of /sys and /proc. affinity: the allowed CPUs, by default those of this process.
    """
    cpus = set(_allowed_cpus() if affinity is None else affinity)
    # Two hyper-threads share their core's multipliers and memory bandwidth: a second thread does not speed up decoding.
    cores = {_siblings(root, cpu) for cpu in cpus}
    return max(1, int(min([len(cores), *_quotas(root)])))


def _allowed_cpus() -> Iterable[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _siblings(root: Path, cpu: int) -> str:
    """A name for the core of `cpu`; the CPU's own if the kernel does not list its siblings."""
    return _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or f"cpu{cpu}"


def _quotas(root: Path) -> Iterator[float]:
    """The CPU quotas, in CPUs, of this process's cgroup and its parents, if any."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        for group in _with_parents(path):
            if not controllers:
                yield from _ratio((_read(root / "sys/fs/cgroup" / group / "cpu.max") or "").split())
            elif "cpu" in controllers.split(","):
                folder = root / "sys/fs/cgroup" / "cpu" / group
                yield from _ratio([_read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")])


def _with_parents(path: str) -> Iterator[str]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return ("/".join(parts[:n]) for n in range(len(parts) + 1))


def _ratio(words: list[str]) -> Iterator[float]:
    if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
        yield int(words[0]) / int(words[1])


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
