"""The server's ASGI application: routes, keys, limits and errors; an endpoint gets a call and answers it."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from megrez.runtime.errors import MegrezError
from megrez.runtime.serving.http import tokens
from megrez.runtime.serving.http.call import Call, ClientGone, connected
from megrez.runtime.serving.http.chat import chat
from megrez.runtime.serving.http.completions import complete
from megrez.runtime.serving.http.errors import HEADERS, ApiError, JsonResponse, as_api_error, to_json
from megrez.runtime.serving.http.fields import Fields, read_body
from megrez.runtime.serving.http.log import log
from megrez.runtime.serving.http.messages import count_tokens, error_body, messages
from megrez.runtime.serving.http.page import page
from megrez.runtime.serving.http.served import Served

# The answer, or None where it was streamed to the call's client.
Answer = Callable[[Call], Awaitable[dict[str, Any] | None]]
ErrorBody = Callable[[ApiError], dict[str, Any]]
# Larger bodies are parsed outside the event loop.
SMALL_BODY = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """body_bytes: of a request. body_s: until a request's body must be whole. api_key: None lets everybody in."""

    body_bytes: int = 8 << 20
    body_s: float = 30.0
    api_key: str | None = None


class Endpoint:
    """Reads a JSON body and answers with JSON or a stream of events. error_body: the form of its errors."""

    def __init__(self, answer: Answer, served: Served, limits: Limits, error_body: ErrorBody = ApiError.body) -> None:
        self._answer, self._served, self._limits, self._error_body = answer, served, limits, error_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = _Response(send)
        at = time.perf_counter()
        used: dict[str, int] = {}
        try:
            await self._respond(scope, receive, response, used)
        except ClientGone:
            response.status = 499
        except Exception as error:
            await self._tell(self._as_api_error(error, scope["path"]), scope, receive, response)
        finally:
            seconds = round(time.perf_counter() - at, 4)
            fields = {"path": scope["path"], "status": response.status, "seconds": seconds, **used}
            log.info("request", extra={"fields": fields})

    async def _respond(self, scope: Scope, receive: Receive, response: "_Response", used: dict[str, int]) -> None:
        check_key(scope, self._limits.api_key)
        if self._served.draining:
            raise ApiError("the server is shutting down", status=503)
        fields = await self._fields(scope, receive)
        async with connected(receive) as gone:
            call = Call(fields=fields, served=self._served, gone=gone, send=response)
            try:
                found = await self._answer(call)
                if found is not None:
                    await JsonResponse(found)(scope, receive, response)
            finally:
                used |= {"prompt_tokens": call.prompt_tokens, "output_tokens": call.output_tokens}

    async def _fields(self, scope: Scope, receive: Receive) -> Fields:
        stated = dict(scope["headers"]).get(b"content-length", b"")
        if stated.isdigit() and int(stated[:19]) > self._limits.body_bytes:
            raise _too_large(self._limits)
        raw = await _read(receive, self._limits)
        return await asyncio.to_thread(read_body, raw) if len(raw) > SMALL_BODY else read_body(raw)

    def _as_api_error(self, error: Exception, path: str) -> ApiError:
        if self._served.closed and isinstance(error, MegrezError):
            return ApiError("the server is shutting down: the answer is not complete", status=503)
        told = as_api_error(error)
        if told.status >= 500:
            log.error("failed", extra={"fields": {"path": path}}, exc_info=error)
        return told

    async def _tell(self, error: ApiError, scope: Scope, receive: Receive, response: "_Response") -> None:
        """A response of its own, or, where one has begun, the last event of its stream."""
        body = self._error_body(error)
        if not response.begun:
            headers = HEADERS.get(error.status, {})
            await JsonResponse(body, status_code=error.status, headers=headers)(scope, receive, response)
            return
        name = b"event: error\n" if self._error_body is error_body else b""
        last = name + b"data: " + to_json(body) + b"\n\n"
        await response({"type": "http.response.body", "body": last, "more_body": False})
        response.status = error.status


class _Response:
    """A `send` that knows what has been sent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False
        self.status = 500

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun, self.status = True, message["status"]
        await self._send(message)


def _too_large(limits: Limits) -> ApiError:
    return ApiError(f"the body is larger than {limits.body_bytes} bytes: send less", status=413)


async def _read(receive: Receive, limits: Limits) -> bytes:
    """The whole body; raises ApiError for one that is too large or too slow, ClientGone."""
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
            raise _too_large(limits)
        if not message.get("more_body", False):
            return b"".join(parts)


def check_key(scope: Scope, key: str | None) -> None:
    """Raise ApiError unless the request carries the key, as OpenAI's clients or Anthropic's send it."""
    if key is None:
        return
    headers = dict(scope["headers"])
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer":
        given = headers.get(b"x-api-key", b"")
    if not hmac.compare_digest(given.strip(), key.encode()):
        raise ApiError("the API key is missing or wrong: send it as  Authorization: Bearer KEY", status=401)


def build_app(served: Served, limits: Limits) -> ASGIApp:
    posts: dict[str, Answer] = {
        "/v1/completions": complete,
        "/v1/chat/completions": chat,
        "/tokenize": tokens.tokenize,
        "/detokenize": tokens.detokenize,
    }
    anthropic: dict[str, Answer] = {"/v1/messages": messages, "/v1/messages/count_tokens": count_tokens}
    gets = tokens.gets(served, lambda request: check_key(request.scope, limits.api_key))
    routes = [Route(path, Endpoint(answer, served, limits), methods=["POST"]) for path, answer in posts.items()]
    for path, answer in anthropic.items():
        routes.append(Route(path, Endpoint(answer, served, limits, error_body), methods=["POST"]))
    routes += [Route(path, answer, methods=["GET"]) for path, answer in {"/": page(), **gets}.items()]
    return Starlette(routes=routes, exception_handlers={404: _not_found, 405: _not_allowed})


async def _not_found(request: Any, error: Exception) -> Any:
    return ApiError(f"there is no {request.url.path} here", status=404).response()


async def _not_allowed(request: Any, error: Exception) -> Any:
    return ApiError(f"{request.url.path} does not take {request.method}", status=405).response()
