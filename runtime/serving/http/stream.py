"""The tokens of one HTTP request as they come, and server-sent events; a client that goes away cancels its tokens."""

import asyncio
import contextlib
from collections.abc import Sequence
from types import TracebackType

from starlette.types import Send

from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.guided import Grammar
from megrez.runtime.serving.http.call import Call, ClientGone
from megrez.runtime.serving.http.errors import to_json
from megrez.runtime.serving.request import Request, Token


class Tokens:
    """(prompt's index, token) of several prompts. An async context manager, which cancels unfinished requests on exit.

    Iterating raises ClientGone, or the error that ended one of the requests.
    """

    def __init__(
        self, call: Call, prompts: Sequence[list[int]], params: SamplingParams, grammar: Grammar | None = None
    ) -> None:
        """grammar: constrains all answers."""
        self._call, self._prompts, self._params, self._grammar = call, prompts, params, grammar
        self._queue: asyncio.Queue[tuple[int, Token | Exception]] = asyncio.Queue()
        self._requests: list[Request] = []
        self._open = 0
        self._begun: set[tuple[int, int]] = set()

    async def __aenter__(self) -> "Tokens":
        """Submit all prompts; raises UsageError or QueueFullError, and then none of them runs."""
        try:
            for at, prompt in enumerate(self._prompts):
                self._requests.append(self._submit(at, prompt))
                self._open += self._params.n
        except Exception:
            self._cancel()
            raise
        self._call.prompt_tokens = sum(map(len, self._prompts))
        self._call.gone.add_done_callback(self._on_gone)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._call.gone.remove_done_callback(self._on_gone)
        if self._open:
            self._cancel()
            self._call.served.metrics.observe_aborted(self._open)

    def __aiter__(self) -> "Tokens":
        return self

    async def __anext__(self) -> tuple[int, Token]:
        if not self._open:
            raise StopAsyncIteration
        at, found = await self._queue.get()
        if self._call.gone.done():
            raise ClientGone
        if isinstance(found, Exception):
            raise found
        self._open -= found.finish_reason is not None
        self._count(at, found)
        return at, found

    def _submit(self, at: int, prompt: list[int]) -> Request:
        loop = asyncio.get_running_loop()

        def sink(found: Token | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the server's loop has ended
                loop.call_soon_threadsafe(self._queue.put_nowait, (at, found))

        return self._call.served.llm.submit(prompt, self._params, sink, self._grammar)

    def _on_gone(self, gone: "asyncio.Future[None]") -> None:
        self._cancel()
        self._queue.put_nowait((0, ClientGone()))

    def _cancel(self) -> None:
        for request in self._requests:
            self._call.served.llm.cancel(request)

    def _count(self, at: int, token: Token) -> None:
        metrics = self._call.served.metrics
        first = (at, token.index) not in self._begun
        self._begun.add((at, token.index))
        metrics.observe(token, first=first)
        self._call.output_tokens += 1
        if first and token.index == 0:
            metrics.observe_prompt(len(self._prompts[at]), token.cached_tokens)
            self._call.cached_tokens += token.cached_tokens
        if token.finish_reason:
            self._call.drafted_tokens += token.drafted_tokens
            self._call.accepted_tokens += token.accepted_tokens


class EventStream:
    """Server-sent events. Headers go out with the first event: an error before that has its own status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = False

    async def event(self, content: object, name: str | None = None) -> None:
        head = f"event: {name}\n".encode() if name else b""
        await self._raw(head + b"data: " + to_json(content) + b"\n\n")

    async def done(self) -> None:
        """OpenAI's last event, and the end."""
        await self._raw(b"data: [DONE]\n\n")
        await self.end()

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _raw(self, data: bytes) -> None:
        if not self._started:
            self._started = True
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
