"""The memory of a machine, and of a control group in it."""

from pathlib import Path

from megrez.runtime.memory import machine_memory, working_bytes
from megrez.runtime.serving.engine import CHUNK


def test_the_least_of_the_limits_counts(tmp_path: Path) -> None:
    assert machine_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:   2048 kB\nMemFree:  1 kB\n")
    assert machine_memory(tmp_path) == 2048 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert machine_memory(tmp_path) == 2048 * 1024
    (group / "memory.max").write_text("1000000\n")
    assert machine_memory(tmp_path) == 1_000_000


def test_what_a_process_takes_beside_its_model() -> None:
    """At Megrez's shape: a chunk of 512 rows of gate, up, their product, the hidden state and its copy, float32."""
    assert working_bytes(2560, 7168) - working_bytes(0, 0) == CHUNK * (7168 + 7168 + 7168 + 2560 + 2560) * 4
