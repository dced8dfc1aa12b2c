"""The thread that runs an engine's steps; any thread may submit requests."""

import threading
from collections import deque

from megrez.runtime.errors import EngineError, MegrezError, UsageError
from megrez.runtime.serving.engine import Engine
from megrez.runtime.serving.limits import output_limit
from megrez.runtime.serving.request import Request


class QueueFullError(MegrezError):
    """The queue is full."""


class Runner:
    """Starts its thread with the first request. queue_limit: most requests that wait while no slot is free."""

    def __init__(self, engine: Engine, *, queue_limit: int | None = None) -> None:
        self._engine, self._queue_limit = engine, queue_limit
        self._wake = threading.Condition()
        self._added: deque[Request] = deque()
        self._cancelled: set[int] = set()
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def queued(self) -> int:
        """How many requests wait for a slot."""
        return len(self._added) + len({one.request.number for one in self._engine.waiting.copy()})

    def submit(self, request: Request) -> None:
        """Queue a request. Raises UsageError if its prompt does not fit or the model is closed, or QueueFullError."""
        output_limit(self._engine.session, request.prompt_ids, request.params.max_tokens)
        with self._wake:
            if self._closing:
                raise UsageError("the model was closed: open it again")
            if self._queue_limit is not None and self.queued >= self._queue_limit + self._engine.slots.free:
                raise QueueFullError(f"the queue is full, {self._queue_limit} requests are waiting: try again later")
            self._added.append(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="megrez-engine", daemon=True)
                self._thread.start()
            self._wake.notify()

    def cancel(self, request: Request) -> None:
        with self._wake:
            self._cancelled.add(request.number)
            self._wake.notify()

    def close(self) -> None:
        """End the thread after its current step; unfinished requests end with an error."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._closing or self._added or self._cancelled) and self._engine.is_idle:
                    self._wake.wait()
                added, cancelled, closing = list(self._added), self._cancelled, self._closing
                self._added.clear()
                self._cancelled = set()
            for request in added:
                if request.number not in cancelled:
                    self._add(request)
            for number in cancelled:
                self._engine.cancel(number)
            if closing:
                self._engine.end(EngineError("the model was closed before the answer was complete"))
                return
            self._engine.step()

    def _add(self, request: Request) -> None:
        try:
            self._engine.add(request)
        except Exception as error:
            request.sink(error)
