"""Shared by both command lines: lazily imported verbs, and errors mapped to exit codes."""

import importlib
import io
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import click

from megrez.runtime.errors import MegrezError, MissingExtraError

INTERRUPTED = 130
# Of folders that `megrez bundle-runtime` wrote.
LEFT_OUT = ("megrez.calibration", "megrez.compile")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """target: "module:name" of a click command. extra: the optional extra that installs what it imports, if any."""

    target: str
    help: str
    extra: str | None = None


class VerbGroup(click.Group):
    """A click group of verbs; `--help` imports none of them."""

    def __init__(self, name: str, verbs: Mapping[str, Verb], *, help: str) -> None:
        super().__init__(name, help=help, context_settings={"help_option_names": ["-h", "--help"]})
        self._verbs = verbs
        click.version_option(package_name="megrez-compile")(self)

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self._verbs)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        verb = self._verbs.get(name)
        return _load(f"{self.name} {name}", verb) if verb else None

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in self._verbs.items()])


def run_cli(command: click.Command, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `command` on `arguments`, by default sys.argv, and exit the process.

    Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted.
    """
    _end_on_signals()
    if sys.stdout is None:
        click.echo("error: standard output is closed: keep it open or redirect it to a file", err=True)
        sys.exit(1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a character gets a "?", not a traceback.
        sys.stdout.reconfigure(errors="replace")
    try:
        code = command.main(arguments, prog_name=command.name, standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except MegrezError as error:
        click.echo(f"error: {' '.join(str(error).splitlines())}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        _mute_stdout()
        sys.exit(1)
    except (OSError, MemoryError) as error:
        _mute_stdout()  # its last flush would fail again where it is what failed
        click.echo(f"error: {_describe(error)}", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _describe(error: OSError | MemoryError) -> str:
    """A failure of the operating system, such as a full disk."""
    if isinstance(error, MemoryError):
        return f"the machine has too little memory{f' ({error})' if str(error) else ''}: free some or ask for less"
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror or error}: fix this and try again"


def _end_on_signals() -> None:
    """Exit through Python's cleanup on SIGTERM and SIGHUP, as on Ctrl-C."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) == signal.SIG_DFL:
            signal.signal(getattr(signal, name), lambda number, frame: sys.exit(128 + number))


def _load(asked: str, verb: Verb) -> click.Command:
    module, name = verb.target.split(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        library = error.name or ""
        if library in LEFT_OUT:
            raise MegrezError(
                f"{asked} needs {library}, which this folder leaves out: run it where megrez-compile is installed"
            ) from error
        if verb.extra is None or library.split(".")[0] == "megrez":
            raise
        raise MissingExtraError(needed_for=asked, library=library, extra=verb.extra) from error
    if not isinstance(found, click.Command):
        raise TypeError(f"{verb.target} is not a click command")
    return found


def _mute_stdout() -> None:
    """Let the interpreter's final flush succeed after the reader has gone, as in `| head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
