"""Reads a chat's messages from a terminal, with line editing and a history, or from a pipe."""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

PROMPT, CONTINUED = "> ", "... "
QUOTES = '"""'
MOST_LINES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """literal: in triple quotes, which make it a message even if it looks like a command."""

    text: str
    literal: bool = False


def read_entries() -> Iterator[Entry]:
    """The entries of stdin until its end; on a terminal with a prompt, and in several lines if the user wants."""
    if sys.stdin.isatty():
        yield from _from_terminal()
        return
    if isinstance(sys.stdin, io.TextIOWrapper):
        # The tokenizer reports bytes that are not UTF-8.
        sys.stdin.reconfigure(errors="surrogateescape")
    yield from (Entry(text=line.strip()) for line in sys.stdin)


def read_entry(read: Callable[[str], str]) -> Entry:
    """One entry: a line, lines joined by a backslash at the end, or a block in triple quotes.

    read: returns a line for a prompt, as `input` does.
    """
    line = read(PROMPT).strip()
    if line.startswith(QUOTES):
        return Entry(text=_read_block(line.removeprefix(QUOTES), read), literal=True)
    while line.endswith("\\"):
        line = f"{line[:-1]}\n{read(CONTINUED).rstrip()}"
    return Entry(text=line.strip())


def _read_block(first: str, read: Callable[[str], str]) -> str:
    lines = [first]
    while not lines[-1].rstrip().endswith(QUOTES):
        lines.append(read(CONTINUED))
    return "\n".join(lines).rstrip().removesuffix(QUOTES).strip("\n")


def _from_terminal() -> Iterator[Entry]:
    """Ctrl-C discards the entry, Ctrl-D ends the chat."""
    while True:
        try:
            entry = read_entry(input)
        except KeyboardInterrupt:
            click.echo("\n(Ctrl-D leaves)", err=True)
        except EOFError:
            click.echo()
            return
        else:
            yield entry


@contextlib.contextmanager
def line_history(path: Path) -> Iterator[None]:
    """Line editing for `input`, with the last MOST_LINES lines of earlier chats; does nothing without readline.

    A history that cannot be read or written is ignored.
    """
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(MOST_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            readline.write_history_file(path)


def history_path(environment: Mapping[str, str]) -> Path:
    """The history's file in the user's state folder; source: XDG Base Directory Specification 0.8."""
    folder = Path(environment.get("XDG_STATE_HOME", ""))
    state = folder if folder.is_absolute() else _home() / ".local" / "state"
    return state / "megrez" / "chat_history"


def _home() -> Path:
    with contextlib.suppress(RuntimeError):  # it is not known
        return Path.home()
    return Path("/nonexistent")
