"""The server's ASGI application: routes, keys, limits and errors; an endpoint reads a body and answers."""

import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from megrez.runtime.serving.http import completions, tokens
from megrez.runtime.serving.http.errors import ApiError, JsonResponse, as_api_error, to_json
from megrez.runtime.serving.http.fields import Fields, read_body
from megrez.runtime.serving.http.served import Served
from megrez.runtime.serving.http.stream import ClientGone

log = logging.getLogger("megrez.serve")
# From the fields of a body to the answer; None where it was streamed to `send`.
Answer = Callable[[Fields, Served, Receive, Send], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """body_bytes: of a request. body_s: until a request's body must be whole. api_key: None lets everybody in."""

    body_bytes: int = 8 << 20
    body_s: float = 30.0
    api_key: str | None = None


class Endpoint:
    """An ASGI endpoint that reads a JSON body and answers with JSON or a stream of events."""

    def __init__(self, answer: Answer, served: Served, limits: Limits) -> None:
        self._answer, self._served, self._limits = answer, served, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = Started(send)
        at = time.perf_counter()
        status = 200
        try:
            check_key(scope, self._limits.api_key)
            if self._served.draining:
                raise ApiError("the server is shutting down", status=503)
            fields = read_body(await _read(receive, self._limits))
            found = await self._answer(fields, self._served, receive, started)
            if found is not None:
                await JsonResponse(found)(scope, receive, send)
        except ClientGone:
            status = 499
        except Exception as error:
            told = as_api_error(error)
            status = told.status
            if told.status >= 500:
                log.exception("%s failed", scope["path"], exc_info=error)
            if started.begun:
                await _end_stream(told, send)
            else:
                await told.response()(scope, receive, send)
        finally:
            log.info("%s %s %d %.3f s", scope["method"], scope["path"], status, time.perf_counter() - at)


class Started:
    """A `send` that knows whether a response has begun: after that an error has no status of its own."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def __call__(self, message: Any) -> None:
        self.begun = True
        await self._send(message)


async def _end_stream(error: ApiError, send: Send) -> None:
    body = b"data: " + to_json(error.body()) + b"\n\n"
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _read(receive: Receive, limits: Limits) -> bytes:
    """The whole body; raises ApiError for one that is too large or too slow, ClientGone."""
    import asyncio

    parts: list[bytes] = []
    size = 0
    deadline = time.monotonic() + limits.body_s
    while True:
        try:
            message = await asyncio.wait_for(receive(), deadline - time.monotonic())
        except asyncio.TimeoutError:
            raise ApiError(f"the body was not whole after {limits.body_s:g} s", status=408) from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limits.body_bytes:
            raise ApiError(f"the body is larger than {limits.body_bytes} bytes: send less", status=413)
        if not message.get("more_body", False):
            return b"".join(parts)


def check_key(scope: Scope, key: str | None) -> None:
    """Raise ApiError unless the request carries the key, as OpenAI's clients or Anthropic's send it."""
    if key is None:
        return
    headers = {name.lower(): value for name, value in scope["headers"]}
    given = headers.get(b"authorization", b"").removeprefix(b"Bearer ") or headers.get(b"x-api-key", b"")
    if not hmac.compare_digest(given, key.encode()):
        raise ApiError("the API key is missing or wrong: send it as  Authorization: Bearer KEY", status=401)


def build_app(served: Served, limits: Limits) -> ASGIApp:
    posts: dict[str, Answer] = {
        "/v1/completions": completions.endpoint,
        "/tokenize": tokens.tokenize,
        "/detokenize": tokens.detokenize,
    }
    gets = tokens.gets(served, lambda request: check_key(request.scope, limits.api_key))
    routes = [Route(path, Endpoint(answer, served, limits), methods=["POST"]) for path, answer in posts.items()]
    routes += [Route(path, answer, methods=["GET"]) for path, answer in gets.items()]
    return Starlette(routes=routes, exception_handlers={404: _not_found, 405: _not_allowed})


async def _not_found(request: Any, error: Exception) -> Any:
    return ApiError(f"there is no {request.url.path} here", status=404).response()


async def _not_allowed(request: Any, error: Exception) -> Any:
    return ApiError(f"{request.url.path} does not take {request.method}", status=405).response()
