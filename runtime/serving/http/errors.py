"""Error responses in OpenAI's format."""

import json
from typing import Any

from starlette.responses import Response

from megrez.runtime.errors import MegrezError, UsageError
from megrez.runtime.serving.runner import QueueFullError


class ApiError(Exception):
    """status: the HTTP status. param: the name of the wrong field, if any. code: for programs."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code

    @property
    def kind(self) -> str:
        return KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return JsonResponse(self.body(), status_code=self.status, headers=HEADERS.get(self.status, {}))


HEADERS = {
    401: {"www-authenticate": "Bearer"},
    408: {"connection": "close"},  # the rest of the body may never come
    429: {"retry-after": "1"},
    503: {"retry-after": "1"},
}
KINDS = {401: "authentication_error", 429: "rate_limit_error", 503: "service_unavailable"}


class JsonResponse(Response):
    """JSON in UTF-8, non-ASCII text not escaped; lone surrogates, which UTF-8 cannot encode, become question marks."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


def to_json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", errors="replace")


def as_api_error(error: Exception) -> ApiError:
    """An exception as an HTTP error: 4xx for a wrong request, 5xx for all others."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(str(error), status=429, code="queue_full")
    if isinstance(error, UsageError):
        code = "context_length_exceeded" if "the context holds" in str(error) else None
        return ApiError(str(error), code=code)
    if isinstance(error, MegrezError):
        return ApiError(str(error), status=500)
    return ApiError("internal error", status=500)
