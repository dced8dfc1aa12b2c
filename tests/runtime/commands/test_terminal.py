"""Entries of one line and of several, and the history's place and contents."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megrez.runtime.commands.terminal import Entry, history_path, line_history, read_entry


def entry_of(*lines: str) -> tuple[Entry, list[str]]:
    """What is read from the lines, and the prompts that were shown."""
    prompts: list[str] = []
    left: Iterator[str] = iter(lines)

    def read(prompt: str) -> str:
        prompts.append(prompt)
        return next(left)

    return read_entry(read), prompts


@pytest.mark.parametrize(
    ("lines", "text", "literal"),
    [
        (["  hi "], "hi", False),
        (["one \\", "two\\", "three"], "one \ntwo\nthree", False),
        (['"""one', " two", 'three"""'], "one\n two\nthree", True),
        (['"""', "one", '"""'], "one", True),
        (['"""/reset"""'], "/reset", True),
        (['""""""'], "", True),
    ],
)
def test_an_entry_is_a_line_or_several(lines: list[str], text: str, literal: bool) -> None:
    found, prompts = entry_of(*lines)
    assert found == Entry(text=text, literal=literal)
    assert prompts == ["> ", *["... "] * (len(lines) - 1)]


def test_the_history_is_in_the_users_state_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    assert history_path({"XDG_STATE_HOME": "/s"}) == Path("/s/megrez/chat_history")
    # The specification has relative paths ignored.
    assert history_path({"XDG_STATE_HOME": "s"}) == history_path({}) == Path("/home/u/.local/state/megrez/chat_history")


def test_the_history_is_read_kept_short_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readline = pytest.importorskip("readline")
    monkeypatch.setattr("megrez.runtime.commands.terminal.MOST_LINES", 2)
    path = tmp_path / "state" / "chat_history"
    readline.clear_history()
    for line in ("one", "two", "three"):
        with line_history(path):
            readline.add_history(line)
        readline.clear_history()
    assert [line for line in path.read_text().splitlines() if not line.startswith("_HiStOrY")] == ["two", "three"]
    assert path.stat().st_mode & 0o077 == 0 and path.parent.stat().st_mode & 0o077 == 0


def test_a_history_that_cannot_be_written_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with line_history(tmp_path / "file" / "chat_history"):
        pass


def test_without_readline_there_is_no_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "readline", None)
    with line_history(tmp_path / "h"):
        pass
    assert not (tmp_path / "h").exists()
