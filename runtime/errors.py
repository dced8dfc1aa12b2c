"""The one tree of errors that users meet; it knows no library's own exceptions.

A message says, on one line, what was asked, what was found and what to do. The CLIs print it after "error: " and
exit with `exit_code`. What the machine refuses (a file, a disk, memory) is one line too; anything else that reaches a
CLI is a bug of ours and keeps its traceback.
"""


class MegrezError(Exception):
    """What was asked cannot be done; `str(error)` is one line for the user."""

    exit_code = 1


class UsageError(MegrezError):
    """The request itself is wrong: an unknown target, an option out of range, a prompt that does not fit."""

    exit_code = 2


class CheckpointError(MegrezError):
    """A model to compile is missing, damaged or of a kind that is not supported."""


class BundleError(MegrezError):
    """A bundle cannot be opened as it stands, or cannot be written."""


class EngineError(MegrezError):
    """An engine refused a graph or failed while it ran."""


class MissingExtraError(MegrezError):
    """A library that an optional extra installs is not there."""

    def __init__(self, *, needed_for: str, library: str, extra: str) -> None:
        super().__init__(
            f"{needed_for} needs {library}, which is not installed: run  pip install 'megrez-compile[{extra}]'"
        )


def first_line(error: Exception) -> str:
    """What a library said, without what follows: our messages are one line."""
    return str(error).strip().split("\n", 1)[0]
