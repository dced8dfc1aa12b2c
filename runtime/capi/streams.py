"""The pieces of one request, from the engine's thread to whichever thread asks for them; knows no model."""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from megrez.runtime.capi.pieces import Piece
from megrez.runtime.capi.status import Status
from megrez.runtime.serving.request import Token

_order = itertools.count()


class Stream:
    """sequences: of the request. read: one or more pieces of a token; called in the order of the tokens."""

    def __init__(self, *, sequences: int, read: Callable[[Token], Sequence[Piece]]) -> None:
        self._read, self._running = read, sequences
        self._lock = threading.RLock()  # a signal handler of a Python program may call in
        self._found: deque[tuple[int, Token | Exception]] = deque()
        self._pieces: deque[Piece] = deque()
        self._since = 0  # when what can be taken came
        self._ended: Exception | Status | None = None
        self._waiting: set[threading.Event] = set()
        self.output_tokens = self.cached_tokens = 0

    def put(self, found: Token | Exception) -> None:
        """The engine's sink: a token, or the error that ended the request."""
        with self._lock:
            if self._ended is not None:
                return
            self._found.append((next(_order), found))
            if isinstance(found, Token):
                self.output_tokens += 1
                self.cached_tokens = max(self.cached_tokens, found.cached_tokens)
                self._running -= found.finish_reason is not None
            self._wake()

    def cancel(self) -> bool:
        """Drop what was not taken; whether the request was still running. One that is complete stays so."""
        with self._lock:
            if self._ended is not None or not self._running:
                return False
            self._end(Status.CANCELLED)
            return True

    def close(self, error: Exception) -> None:
        """Whoever waits, or asks later, gets the error."""
        with self._lock:
            self._end(error)

    def take(self) -> Piece | Status | None:
        """The next piece, how the request ended, or None where nothing has come yet. Raises the error that ended it."""
        with self._lock:
            if not self._pieces and self._found:
                self._since, found = self._found.popleft()
                if isinstance(found, Exception):
                    self._ended = found
                else:
                    self._pieces.extend(self._read(found))
            if self._pieces:
                return self._pieces.popleft()
            if isinstance(self._ended, Exception):
                raise self._ended.with_traceback(None)
            return self._ended or (None if self._running else Status.END)

    def ready_since(self) -> int | None:
        """When what `take` returns came, as a number that grows; None where it would return None."""
        with self._lock:
            if self._found and not self._pieces:
                return self._found[0][0]
            return self._since if self._pieces or self._ended is not None or not self._running else None

    def watch(self, arrived: threading.Event) -> None:
        """Set `arrived` whenever something comes, until `unwatch`."""
        with self._lock:
            self._waiting.add(arrived)

    def unwatch(self, arrived: threading.Event) -> None:
        with self._lock:
            self._waiting.discard(arrived)

    def _end(self, how: Exception | Status) -> None:
        self._found.clear()
        self._pieces.clear()
        self._ended, self._since = how, next(_order)
        self._wake()

    def _wake(self) -> None:
        for arrived in self._waiting:
            arrived.set()


def wait(streams: Sequence[Stream], seconds: float | None) -> int | None:
    """The position of the stream that is ready for longest, once one is; None after `seconds`."""
    deadline = None if seconds is None else time.monotonic() + seconds
    if (ready := _oldest(streams)) is not None or seconds == 0:
        return ready
    arrived = threading.Event()
    for stream in streams:
        stream.watch(arrived)
    try:
        while (ready := _oldest(streams)) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            arrived.wait(None if left is None else min(left, threading.TIMEOUT_MAX))
            arrived.clear()
        return ready
    finally:
        for stream in streams:
            stream.unwatch(arrived)


def poll(stream: Stream, seconds: float | None) -> Piece | Status:
    """The next piece, or how the request ended; Status.TIMEOUT after `seconds`. None waits without limit."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while (found := stream.take()) is None:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if left == 0 or wait([stream], left) is None:
            return stream.take() or Status.TIMEOUT
    return found


def _oldest(streams: Sequence[Stream]) -> int | None:
    ready = [(since, at) for at, stream in enumerate(streams) if (since := stream.ready_since()) is not None]
    return min(ready)[1] if ready else None
