import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megrez.runtime.huge_pages import wanted_environment

ASKS = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine that gives huge pages to whoever asks."""
    _allow(tmp_path, "always [madvise] never")
    return tmp_path


def _allow(root: Path, choice: str, size: int = 2 << 20) -> None:
    folder = root / "sys/kernel/mm/transparent_hugepage"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "enabled").write_text(choice + "\n")
    (folder / "hpage_pmd_size").write_text(f"{size}\n")


def test_asks_beside_what_is_set_already(root: Path) -> None:
    assert wanted_environment({"HOME": "/h"}, "glibc 2.36", root) == {"HOME": "/h", **ASKS}
    kept = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}
    found = wanted_environment(kept, "glibc 2.36", root)
    assert found == {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"}


@pytest.mark.parametrize("decided", ["glibc.malloc.hugetlb=0", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"])
def test_leaves_what_somebody_decided(root: Path, decided: str) -> None:
    assert wanted_environment({"GLIBC_TUNABLES": decided}, "glibc 2.36", root) is None


@pytest.mark.parametrize(
    ("libc", "asks"),
    [("glibc 2.35", True), ("glibc 2.34", False), ("glibc 3.0", True), ("musl 1.2", False), ("", False)],
)
def test_needs_a_glibc_that_takes_the_tunable(root: Path, libc: str, asks: bool) -> None:
    assert wanted_environment({}, libc, root) == (ASKS if asks else None)


@pytest.mark.parametrize("choice", ["[always] madvise never", "always madvise [never]"])
def test_changes_nothing_where_the_kernel_gives_to_all_or_nobody(root: Path, choice: str) -> None:
    _allow(root, choice)
    assert wanted_environment({}, "glibc 2.36", root) is None


def test_changes_nothing_where_a_huge_page_is_half_a_gigabyte(root: Path) -> None:
    _allow(root, "always [madvise] never", 512 << 20)
    assert wanted_environment({}, "glibc 2.36", root) is None


def test_changes_nothing_without_a_kernel_that_has_them(tmp_path: Path) -> None:
    assert wanted_environment({}, "glibc 2.36", tmp_path) is None


def test_starts_the_same_program_in_the_same_process_once(tmp_path: Path) -> None:
    said = tmp_path / "said"
    code = (
        "import json, os, sys\n"
        "from megrez.runtime import huge_pages\n"
        "def asks(environment, libc):\n"
        "    return None if 'AGAIN' in environment else {**environment, 'AGAIN': '1'}\n"
        "huge_pages.wanted_environment = asks\n"
        f"with open({str(said)!r}, 'a') as file:\n"
        "    read = sys.stdin.read() if 'AGAIN' in os.environ else ''\n"
        "    print(json.dumps([os.getpid(), sys.argv[1:], read]), file=file)\n"
        "huge_pages.restart_with_huge_pages()\n"
    )
    environment = {name: text for name, text in os.environ.items() if name != "AGAIN"}
    command = [sys.executable, "-X", "utf8", "-c", code, "run", "ein Wort, ü", ""]
    subprocess.run(command, env=environment, input="prompt", text=True, check=True, timeout=60)
    first, second = map(json.loads, said.read_text().splitlines())
    assert first == [second[0], ["run", "ein Wort, ü", ""], ""]
    assert second[1:] == [["run", "ein Wort, ü", ""], "prompt"]


def test_only_commands_that_decode_for_long_are_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from megrez.runtime import cli

    told: list[str] = []
    monkeypatch.setattr(cli, "restart_with_huge_pages", lambda: told.append("restart"))
    monkeypatch.setattr(cli, "main", lambda: told.append("main"))
    for verb in ("bench", "run"):
        monkeypatch.setattr(sys, "argv", ["megrez", verb, "chat"])
        cli.program()
    monkeypatch.setattr(sys, "argv", ["megrez"])
    cli.program()
    assert told == ["restart", "main", "main", "main"]
