"""The exceptions for users, in one hierarchy.

A message is one line: what was requested, what was found and what to do. The CLIs print it after "error: " and
exit with `exit_code`. Failures of the operating system (files, disk, memory) are one line too; any other exception
that reaches a CLI is a bug and keeps its traceback.
"""


class MegrezError(Exception):
    """The request failed; `str(error)` is one line for the user."""

    exit_code = 1


class UsageError(MegrezError):
    """The request itself is wrong: an unknown target, an option out of range, a prompt that does not fit."""

    exit_code = 2


class CheckpointError(MegrezError):
    """The model to compile is missing, damaged or not supported."""


class BundleError(MegrezError):
    """A bundle cannot be opened or written."""


class EngineError(MegrezError):
    """An engine rejected a graph or failed at run time."""


class MissingExtraError(MegrezError):
    """A library that an optional extra installs is missing."""

    def __init__(self, *, needed_for: str, library: str, extra: str) -> None:
        super().__init__(
            f"{needed_for} needs {library}, which is not installed: run  pip install 'megrez-compile[{extra}]'"
        )


def first_line(error: Exception) -> str:
    """The first line of a library's message, since ours are one line."""
    return str(error).strip().split("\n", 1)[0]
