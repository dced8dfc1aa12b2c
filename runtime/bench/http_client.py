"""Requests to a server with OpenAI's interface, streamed; tokens are counted by its `usage`, never by chunks."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megrez.runtime.bench.connection import Address, BrokenConnectionError, Connection, Response, SilentError
from megrez.runtime.bench.drive import Clock, StoppedError
from megrez.runtime.bench.figures import Record
from megrez.runtime.bench.live import Live
from megrez.runtime.bench.workload import Ask
from megrez.runtime.errors import MegrezError

TIMEOUT_S = 120.0
_PROBE_S = 10.0
_NO_USAGE = "its stream has no usage, so that tokens cannot be counted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """url: as the user gave it. timeout_s: the longest silence of the server before it counts as gone."""

    url: str
    address: Address
    model: str
    api_key: str | None = None
    timeout_s: float = TIMEOUT_S

    @property
    def headers(self) -> dict[str, str]:
        key = {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}
        return {"content-type": "application/json", **key}


async def find_target(url: str, *, model: str | None, api_key: str | None, timeout_s: float = TIMEOUT_S) -> Target:
    """The server at `url`, and the first model that it lists unless one is named; raises MegrezError, UsageError."""
    target = Target(url=url, address=Address.parse(url), model=model or "", api_key=api_key, timeout_s=timeout_s)
    connection = Connection(target.address, min(timeout_s, _PROBE_S))
    try:
        response = await connection.request("GET", "/v1/models", b"", target.headers)
        body = await response.body()
    except BrokenConnectionError as error:
        raise MegrezError(f"no server answers at {url} ({error}): start one with  megrez serve BUNDLE") from error
    finally:
        await connection.close()
    if model is not None:
        return target
    if response.status != 200:
        raise MegrezError(f"{url}/v1/models answers {_refusal(response.status, body)}: name the model with --model")
    try:
        found = json.loads(body)["data"][0]["id"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise MegrezError(f"{url}/v1/models lists no model: name one with --model") from None
    return Target(url=url, address=target.address, model=str(found), api_key=api_key, timeout_s=timeout_s)


class HttpClient:
    """A Client over HTTP; it keeps connections open between requests. A context manager for asyncio."""

    def __init__(
        self,
        target: Target,
        *,
        temperature: float,
        ignore_eos: bool,
        chat: bool,
        clock: Clock = time.perf_counter,
        live: Live | None = None,
    ) -> None:
        self._target, self._clock, self._live = target, clock, live or Live()
        self._temperature, self._ignore_eos, self._chat = temperature, ignore_eos, chat
        self._idle: list[Connection] = []

    async def __aenter__(self) -> "HttpClient":
        return self

    async def __aexit__(self, *error: object) -> None:
        for connection in self._idle:
            await connection.close()

    async def send(self, ask: Ask) -> Record:
        """Raises StoppedError where the server is silent for too long, or broke off and cannot be reached again."""
        stream = _Stream(clock=self._clock, live=self._live)
        path, body = self._path(), json.dumps(self._body(ask)).encode()
        while self._idle and not self._idle[-1].is_open:
            await self._idle.pop().close()
        connection = self._idle.pop() if self._idle else Connection(self._target.address, self._target.timeout_s)
        sent = self._clock()
        try:
            response = await connection.request("POST", path, body, self._target.headers)
            await stream.read(response)
        except BrokenConnectionError as error:
            await connection.close()
            await self._check_alive(error)
            return Record(sent=sent, done=self._clock(), error=f"the server broke off: {error}")
        except BaseException:
            await connection.close()
            raise
        if response.is_reusable:
            self._idle.append(connection)
        else:
            await connection.close()
        return stream.record(sent)

    async def _check_alive(self, reason: BrokenConnectionError) -> None:
        target = self._target
        gone = StoppedError(f"the server at {target.url} stopped answering ({reason})")
        if isinstance(reason, SilentError):
            raise gone
        try:
            await find_target(target.url, model=target.model, api_key=target.api_key)
        except MegrezError:
            raise gone from None

    def _path(self) -> str:
        return "/v1/chat/completions" if self._chat else "/v1/completions"

    def _body(self, ask: Ask) -> dict[str, Any]:
        prompt = {"messages": [{"role": "user", "content": ask.prompt}]} if self._chat else {"prompt": ask.prompt}
        # Servers without these two ignore them or refuse them by name; OpenAI's own has neither.
        exact = {"ignore_eos": True, "repetition_penalty": 1.0} if self._ignore_eos else {}
        return {
            "model": self._target.model,
            **prompt,
            "max_tokens": ask.output_tokens,
            "temperature": self._temperature,
            "top_p": 1.0,
            "seed": ask.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
            **exact,
        }


@dataclass(slots=True, kw_only=True)
class _Stream:
    """What a stream of completions has brought so far."""

    clock: Clock
    live: Live
    times: list[float] = field(default_factory=list)
    last: float | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    async def read(self, response: Response) -> None:
        if response.status != 200:
            self.error = _refusal(response.status, await response.body())
            return
        async for data in response.events():
            if data != b"[DONE]":
                self._take(data, self.clock())

    def _take(self, data: bytes, now: float) -> None:
        try:
            event = json.loads(data)
        except ValueError:
            raise BrokenConnectionError("an event of its stream is not JSON") from None
        if not isinstance(event, dict):
            raise BrokenConnectionError("an event of its stream is not an object")
        if event.get("error"):
            self.error = _message(event) or "an error without a message"
        self.usage = event.get("usage") or self.usage
        for choice in event.get("choices") or ():
            if not isinstance(choice, dict):
                continue
            text = choice.get("text") or (choice.get("delta") or {}).get("content")
            if text:
                self.times.append(now)
                self.live.tokens += 1
            if text or choice.get("finish_reason"):
                self.last = now

    def record(self, sent: float) -> Record:
        counted = self.usage.get("completion_tokens")
        done = self.clock() if self.last is None else self.last
        error = self.error
        if error is None and not isinstance(counted, int):
            error = _NO_USAGE
        if error is not None:
            return Record(sent=sent, done=done, error=error)
        details = self.usage.get("prompt_tokens_details") or {}
        return Record(
            sent=sent,
            done=done,
            times=tuple(self.times),
            prompt_tokens=int(self.usage.get("prompt_tokens") or 0),
            output_tokens=int(counted or 0),
            cached_tokens=int(details.get("cached_tokens") or 0),
        )


def _refusal(status: int, body: bytes) -> str:
    """One line of what a server says where it does not answer."""
    try:
        said = _message(json.loads(body))
    except ValueError:
        said = body.decode("utf-8", "replace")
    line = " ".join((said or "").split())[:200]
    return f"status {status}" + (f" ({line})" if line else "")


def _message(content: object) -> str | None:
    error = content.get("error") if isinstance(content, dict) else None
    said = error.get("message") if isinstance(error, dict) else error
    return said if isinstance(said, str) else None
