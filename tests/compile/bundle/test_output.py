"""An output is built by one process at a time, and a lock outlives nobody."""

from pathlib import Path

import pytest

from megrez.compile.bundle.output import locked
from megrez.runtime.errors import UsageError


def test_a_held_output_is_refused_and_free_again_afterwards(tmp_path: Path) -> None:
    output = tmp_path / "new" / "b"
    with locked(output):
        with (
            pytest.raises(UsageError, match=r"b is being built by another process: wait for it or choose another -o"),
            locked(output),
        ):
            raise AssertionError
        with locked(tmp_path / "new" / "other"):
            assert sorted(path.name for path in output.parent.iterdir()) == [".b.lock", ".other.lock"]
    with pytest.raises(ValueError), locked(output):
        raise ValueError
    assert list(output.parent.iterdir()) == []


def test_through_a_link_it_is_the_same_output(tmp_path: Path) -> None:
    (tmp_path / "goal").mkdir()
    (tmp_path / "link").symlink_to("goal")
    with locked(tmp_path / "goal"), pytest.raises(UsageError), locked(tmp_path / "link"):
        raise AssertionError


def test_the_file_of_a_killed_process_locks_nothing(tmp_path: Path) -> None:
    (tmp_path / ".b.lock").write_bytes(b"")
    with locked(tmp_path / "b"):
        pass
    assert list(tmp_path.iterdir()) == []
