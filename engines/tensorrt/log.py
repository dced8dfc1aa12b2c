"""A TensorRT logger that keeps messages as lines; knows no step of a build."""

import re
from typing import Any

NUMBER = re.compile(r"(\d+)")


def open_log(library: Any, *, errors_alone: bool = False) -> Any:
    """A logger of `library` that keeps all messages in `lines` and the errors in `errors`, or the errors alone."""

    class Log(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []
            self.errors: list[str] = []
            self.interrupted = False  # by Ctrl-C, which the library would swallow

        def log(self, severity: Any, message: str) -> None:
            try:
                if not errors_alone:
                    self.lines += message.splitlines()
                if severity in (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR):
                    self.errors.append(message.strip())
            except KeyboardInterrupt:
                self.interrupted = True

    return Log()


def largest(lines: list[str], heading: str) -> int:
    """The largest number after `heading`, 0 where there is none: sizes are stated in the log only."""
    parts = (line.partition(heading) for line in lines if heading in line)
    numbers = (NUMBER.search(after) for _, _, after in parts)
    return max((int(number[1]) for number in numbers if number is not None), default=0)
