"""A folder is there whole or not at all, and what killed processes left is swept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megrez.compile.bundle.atomic_folder import MARK, atomic_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dead_pid() -> int:
    """Of a process that has just ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def leave(path: Path, pid: int, suffix: str = "") -> Path:
    remains = path.with_name(f".{path.name}{MARK}{pid}{suffix}")
    remains.mkdir(parents=True)
    (remains / "half").write_text("x")
    return remains


def test_what_was_written_appears_under_the_name(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "deep" / "a") as folder:
        (folder / "f").write_text("new")
        assert folder.parent == tmp_path / "deep" and not (tmp_path / "deep" / "a").exists()
    assert names(tmp_path / "deep") == ["a"] and (tmp_path / "deep" / "a" / "f").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: type[BaseException], before: str | None) -> None:
    if before:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "f").write_text(before)
    with pytest.raises(error), atomic_folder(tmp_path / "a") as folder:
        (folder / "f").write_text("new")
        raise error
    assert names(tmp_path) == (["a"] if before else [])
    assert before is None or (tmp_path / "a" / "f").read_text() == before


def test_an_older_folder_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "only in the old").write_text("old")
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "f").write_text("new")
        assert (tmp_path / "a" / "only in the old").read_text() == "old"
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["f"]


@pytest.mark.parametrize("name", ["a", "model [v1] *"])
def test_remains_of_killed_processes_are_swept(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    pid = dead_pid()
    leave(path, pid)
    leave(path, pid, "-old")
    with atomic_folder(path):
        pass
    assert names(tmp_path) == [name]


def test_remains_under_our_own_number_are_swept(tmp_path: Path) -> None:
    """In a container every run has the same process number."""
    leave(tmp_path / "a", os.getpid())
    with atomic_folder(tmp_path / "a") as folder:
        assert names(folder) == []
    assert names(tmp_path) == ["a"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    leave(path, dead_pid(), "-old")
    with pytest.raises(ValueError), atomic_folder(path):
        assert (path / "half").read_text() == "x"
        raise ValueError
    assert names(tmp_path) == ["a"]


def test_running_processes_and_other_names_are_left_alone(tmp_path: Path) -> None:
    kept = [leave(tmp_path / "a", os.getppid()), leave(tmp_path / "ab", dead_pid())]
    kept += [leave(tmp_path / "b", dead_pid())]
    with atomic_folder(tmp_path / "a"):
        pass
    assert names(tmp_path) == sorted(["a", *(path.name for path in kept)])


def test_through_a_link_its_goal_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "goal").mkdir()
    (tmp_path / "goal" / "old").write_text("old")
    (tmp_path / "link").symlink_to("goal")
    with atomic_folder(tmp_path / "link") as folder:
        (folder / "f").write_text("new")
    assert names(tmp_path) == ["goal", "link"] and (tmp_path / "link").is_symlink()
    assert names(tmp_path / "goal") == ["f"]
