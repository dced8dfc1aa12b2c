"""The chat page at /: one file, under a Content-Security-Policy that lets it ask this server alone."""

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, Response

PAGE = Path(__file__).with_name("page.html")


def page() -> Callable[[HttpRequest], Awaitable[Response]]:
    """What answers GET /. It needs no key: the page holds no secret, and its own requests carry the key."""
    content = PAGE.read_text(encoding="utf-8")
    headers = {
        "content-security-policy": security_policy(content),
        "cache-control": "no-cache",
        "cross-origin-opener-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }

    async def get(request: HttpRequest) -> Response:
        return HTMLResponse(content, headers=headers)

    return get


def security_policy(content: str) -> str:
    """Only the file's own script and style run, known by their SHA-256; text never becomes HTML (Trusted Types)."""
    directives = {
        "default-src": "'none'",
        "script-src": _hashes("script", content),
        "style-src": _hashes("style", content),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def _hashes(tag: str, content: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", content, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
