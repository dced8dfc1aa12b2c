"""JSON as HTTP responses."""

from typing import Any

from starlette.responses import Response

from megrez.runtime.serving.http.errors import HEADERS, ApiError, to_json


class JsonResponse(Response):
    """See `to_json`."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


def error_response(error: ApiError) -> Response:
    return JsonResponse(error.body(), status_code=error.status, headers=HEADERS.get(error.status, {}))
