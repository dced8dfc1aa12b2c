"""The statuses of megrez.h, and which one an exception is."""

from enum import IntEnum

from megrez.runtime.errors import (
    BundleError,
    EngineError,
    MegrezError,
    MissingExtraError,
    UsageError,
    first_line,
)
from megrez.runtime.serving.http.errors import ApiError
from megrez.runtime.serving.runner import QueueFullError


class Status(IntEnum):
    """As in megrez.h, without the prefix. Negative ones are errors."""

    OK = 0
    TIMEOUT = 1
    END = 2
    CANCELLED = 3
    ERROR_USAGE = -1
    ERROR_HANDLE = -2
    ERROR_BUNDLE = -3
    ERROR_ENGINE = -4
    ERROR_MISSING = -5
    ERROR_QUEUE_FULL = -6
    ERROR_PYTHON = -7
    ERROR_FORKED = -8
    ERROR_SYSTEM = -9
    ERROR_INTERRUPTED = -10
    ERROR_INTERNAL = -11


class HandleError(MegrezError):
    """A handle is NULL, of another kind, closed or freed."""


# The first that fits; a subclass stands before its base.
_STATUSES: tuple[tuple[type[BaseException], Status], ...] = (
    (HandleError, Status.ERROR_HANDLE),
    (QueueFullError, Status.ERROR_QUEUE_FULL),
    (UsageError, Status.ERROR_USAGE),
    (ApiError, Status.ERROR_USAGE),
    (BundleError, Status.ERROR_BUNDLE),
    (EngineError, Status.ERROR_ENGINE),
    (MissingExtraError, Status.ERROR_MISSING),
    (ImportError, Status.ERROR_MISSING),
    (OSError, Status.ERROR_SYSTEM),
    (MemoryError, Status.ERROR_SYSTEM),
    (KeyboardInterrupt, Status.ERROR_INTERRUPTED),
)


def status_of(error: BaseException) -> Status:
    """ERROR_INTERNAL for what is no error of ours."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), Status.ERROR_INTERNAL)


def message_of(error: BaseException) -> str:
    """One line for the user; an exception that is a bug is named by its type."""
    status = status_of(error)
    if status is Status.ERROR_INTERRUPTED:
        return "interrupted while waiting"
    text = first_line(error) if isinstance(error, Exception) else ""
    if status is Status.ERROR_INTERNAL:
        return f"internal error, please report it: {type(error).__name__}: {text}"
    return text or type(error).__name__
