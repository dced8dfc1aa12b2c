"""The tokens that a running benchmark has got so far, for a line on a terminal; counts in no figure."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from megrez.runtime.bench.figures import Record


@dataclass(slots=True)
class Live:
    """tokens: over HTTP, chunks with text. done, failed: requests."""

    tokens: int = 0
    done: int = 0
    failed: int = 0

    def note(self, record: Record) -> None:
        """A request has ended."""
        self.done += 1
        self.failed += record.error is not None


class Ticker:
    """Shows a line about `live` once a second, from a thread, until `close`, which ends the line."""

    def __init__(
        self,
        live: Live,
        total: int | None,
        show: Callable[[str], object],
        *,
        what: str = "requests",
        every_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._live, self._total, self._show, self._every_s, self._clock = live, total, show, every_s, clock
        self._what, self._ended = what, threading.Event()
        self._before = live.tokens, clock()
        self._width = 0
        self._thread = threading.Thread(target=self._run, name="ticker", daemon=True)
        self._thread.start()

    def line(self) -> str:
        """Requests, and tokens per second since the last line."""
        tokens, now = self._live.tokens, self._clock()
        passed = now - self._before[1]
        rate = (tokens - self._before[0]) / passed if passed > 0 else 0.0
        self._before = tokens, now
        of = f" of {self._total}" if self._total else ""
        wrong = f", {self._live.failed} failed" if self._live.failed else ""
        return f"{self._live.done}{of} {self._what}{wrong}, {rate:.1f} tokens/s"

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._write(self.line())
        self._show("\n")

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            self._write(self.line())

    def _write(self, line: str) -> None:
        self._show("\r" + line.ljust(self._width))
        self._width = len(line)
