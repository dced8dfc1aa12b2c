"""How much memory this machine lets a process have, and what one takes beside its model."""

import contextlib
from pathlib import Path

_PROCESS_BYTES = 96 << 20  # Python, numpy, ONNX Runtime and its kernels' buffers, as measured on x86-64
_STEP_TOKENS = 512  # of the longest step that the decode loop takes


def machine_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory, or of the control group's limit where that is less; None where Linux does not say.

    root: the parent of /proc and /sys.
    """
    limits = [_total(root), _limit(root / "sys/fs/cgroup/memory.max")]
    limits.append(_limit(root / "sys/fs/cgroup/memory/memory.limit_in_bytes"))
    return min((limit for limit in limits if limit is not None), default=None)


def working_bytes(hidden_size: int, intermediate_size: int) -> int:
    """About what a process on ONNX Runtime's CPU engine takes beside weights and KV cache: itself, and the float32
    activations of one layer in its longest step.
    """
    return _PROCESS_BYTES + _STEP_TOKENS * 4 * (3 * intermediate_size + 2 * hidden_size)


def _total(root: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name == "MemTotal":
                return int(value.split()[0]) * 1024
    return None


def _limit(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text(encoding="ascii"))  # "max" where there is none
    return None
