"""What a figure was measured on and with: the machine, its load, versions, the bundle and the command."""

import contextlib
import importlib.metadata
import os
import platform
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from megrez.runtime.bundle import Bundle, sha256_of
from megrez.runtime.manifest import FILE_NAME
from megrez.runtime.threads import default_threads

_DISTRIBUTIONS = (
    "megrez-compile",
    "numpy",
    "tokenizers",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-qnn",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13",
)


def describe_environment(bundle: Bundle | None, threads: int | None) -> dict[str, Any]:
    """For JSON; to be called before the run, and completed after it by the load average of then.

    bundle_sha256: of its manifest, which lists the hash of every file. threads: those of the engine; None where another
    process runs it.
    """
    return {
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "cores": default_threads(),
        "threads": threads,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in _DISTRIBUTIONS if (version := _version(name)) is not None},
        "bundle": None if bundle is None else bundle.path.resolve().name,
        "bundle_sha256": None if bundle is None else sha256_of(bundle.path / FILE_NAME),
        "target": None if bundle is None else bundle.manifest.target,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "load_average_before": load_average(),
        "load_average_after": None,
    }


def cpu_model(root: Path = Path("/")) -> str:
    """root: the parent of /proc."""
    with contextlib.suppress(OSError):
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^(?:model name|Hardware|Model)\s*:\s*(.+)$", text, re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine() or "unknown"


def load_average() -> float | None:
    """Of the last minute; None where the system has none."""
    with contextlib.suppress(AttributeError, OSError):
        return round(os.getloadavg()[0], 2)
    return None


def peak_rss_bytes() -> int:
    """Peak resident memory of this process, memory-mapped weights included."""
    # getrusage also counts the memory of the process before exec; /proc does not.
    with contextlib.suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    import resource  # absent on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
