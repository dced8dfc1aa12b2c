"""One request's tokens inside an ASGI call: a client that goes away cancels it, streaming or not."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.types import Receive, Send

from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.http.errors import to_json
from megrez.runtime.serving.llm import LLM
from megrez.runtime.serving.request import Request, Token


class ClientGone(Exception):
    """The client closed the connection."""


@contextlib.asynccontextmanager
async def connected(receive: Receive) -> AsyncIterator["asyncio.Future[None]"]:
    """A future that is done once the client has closed the connection: the body must be read already."""
    gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not gone.done():
            gone.set_result(None)

    watcher = asyncio.create_task(watch())
    try:
        yield gone
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher


class Tokens:
    """Tokens of several prompts of one HTTP request, as they come: (prompt's index, token)."""

    def __init__(self, llm: LLM, gone: "asyncio.Future[None]") -> None:
        self._llm, self._gone = llm, gone
        self._queue: asyncio.Queue[tuple[int, Token | Exception]] = asyncio.Queue()
        self._requests: list[Request] = []
        self._open = 0

    def submit(self, prompt_ids: list[int], params: SamplingParams) -> Request:
        """Raises UsageError or QueueFullError, and then cancels the earlier requests of this HTTP call."""
        loop, at = asyncio.get_running_loop(), len(self._requests)

        def sink(found: Token | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the server's loop has ended
                loop.call_soon_threadsafe(self._queue.put_nowait, (at, found))

        try:
            request = self._llm.submit(prompt_ids, params, sink)
        except Exception:
            self.cancel()
            raise
        self._requests.append(request)
        self._open += params.n
        return request

    async def __aiter__(self) -> AsyncIterator[tuple[int, Token]]:
        """Ends when all sequences have; raises ClientGone, or the error that ended a request; then nothing runs on."""
        try:
            while self._open:
                at, found = await self._next()
                if isinstance(found, Exception):
                    raise found
                self._open -= found.finish_reason is not None
                yield at, found
        finally:
            if self._open:
                self.cancel()

    def cancel(self) -> None:
        for request in self._requests:
            self._llm.cancel(request)

    async def _next(self) -> tuple[int, Token | Exception]:
        if not self._queue.empty():
            return self._queue.get_nowait()
        waiting = asyncio.ensure_future(self._queue.get())
        try:
            await asyncio.wait((waiting, self._gone), return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            raise ClientGone
        finally:
            waiting.cancel()


class EventStream:
    """Server-sent events. Headers go out with the first event: an error before that has its own status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def event(self, content: object, name: str | None = None) -> None:
        head = f"event: {name}\n".encode() if name else b""
        await self.raw(head + b"data: " + to_json(content) + b"\n\n")

    async def raw(self, data: bytes) -> None:
        if not self.started:
            self.started = True
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
