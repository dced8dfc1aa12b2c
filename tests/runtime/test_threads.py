import os
from pathlib import Path

import pytest

from megrez.runtime.threads import default_threads


def machine(root: Path, siblings: dict[int, str], files: dict[str, str] | None = None) -> Path:
    """A root folder whose /sys and /proc describe a machine; siblings: cpu → its thread_siblings_list."""
    topology = {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": text for cpu, text in siblings.items()
    }
    for name, text in {**topology, **(files or {})}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


FOUR_CORES = {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}


@pytest.mark.parametrize(("affinity", "expected"), [(range(8), 4), ([0, 4], 1), ([0, 1, 5], 2), ([7], 1)])
def test_threads_are_the_physical_cores_of_the_allowed_cpus(tmp_path, affinity, expected):
    assert default_threads(machine(tmp_path, FOUR_CORES), affinity) == expected


def test_a_kernel_that_tells_no_topology_counts_cpus(tmp_path):
    assert default_threads(tmp_path, range(6)) == 6


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 4),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "350000 100000"}, 3),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "200000 100000"}, 2),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/cpu.max": "300000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "100000 100000",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/x",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            4,
        ),
    ],
)
def test_a_cgroups_quota_bounds_the_threads(tmp_path, files, expected):
    assert default_threads(machine(tmp_path, FOUR_CORES, files), range(8)) == expected


def test_this_machine_gives_a_sensible_number():
    assert 1 <= default_threads() <= (os.cpu_count() or 1)
