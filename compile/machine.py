"""This machine's packages, processor, memory and GPUs; knows no target.

Reads metadata and /proc and runs nvidia-smi; imports no engine library.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# The instructions that our kernels and ONNX Runtime's choose between, as Linux names them.
INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")
_READ_BYTES = 128 << 20
_PIECE = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU as nvidia-smi reports it. capability: ten times major plus minor, 0 where unknown."""

    name: str
    capability: int
    driver: str
    memory_mib: int
    free_mib: int


def package_version(package: str) -> str | None:
    """The installed version; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def can_import(module: str) -> bool:
    """Whether the module can be found; imports only its parent packages."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def gpus() -> list[Gpu]:
    """The NVIDIA GPUs; none where there is no nvidia-smi or it reports none."""
    fields = "name,compute_cap,driver_version,memory.total,memory.free"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [
        Gpu(
            name=name,
            capability=_number(capability.replace(".", "")),
            driver=driver,
            memory_mib=_number(total),
            free_mib=_number(free),
        )
        for name, capability, driver, total, free in (row for row in rows if len(row) == 5)
    ]


def processor(root: Path = Path("/")) -> tuple[str, list[str]]:
    """The CPU's model, and which of INSTRUCTIONS it has. root: the parent of /proc."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip().lower(), value.strip())
    flags = (found.get("flags") or found.get("features") or "").split()
    model = found.get("model name") or found.get("hardware") or platform.processor() or "unknown"
    return f"{model} ({platform.machine()})", [name for name in INSTRUCTIONS if name in flags]


def memory(root: Path = Path("/")) -> tuple[int, int] | None:
    """Bytes of memory, total and available; None where /proc does not state them."""
    found: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for line in (root / "proc/meminfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            found[name] = _number(value.split()[0]) * 1024 if value.split() else 0
    return (found["MemTotal"], found["MemAvailable"]) if {"MemTotal", "MemAvailable"} <= set(found) else None


def read_bandwidth(threads: int) -> float:
    """Bytes per second with which `threads` threads read memory, the best of three readings of 128 MiB."""
    pieces = np.ones(_READ_BYTES // 4, np.float32).reshape(-1, _PIECE)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            start = time.perf_counter()
            list(pool.map(lambda piece: float(piece.max()), pieces))
            best = max(best, pieces.nbytes / (time.perf_counter() - start))
    return best


def huge_pages(root: Path = Path("/")) -> str:
    """Linux's setting for transparent huge pages: always, madvise or never."""
    with contextlib.suppress(OSError, IndexError):
        text = (root / "sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
        return text.split("[")[1].split("]")[0]
    return "unknown"


def free_disk(folder: Path) -> int | None:
    """Free bytes on the disk of `folder`, which need not exist."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def hub_cache() -> Path:
    """huggingface_hub's cache folder, from its environment variables."""
    home = os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def c_compiler() -> str | None:
    return next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
