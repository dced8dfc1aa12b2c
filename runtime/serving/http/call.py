"""An HTTP request in progress: its fields, its client, and its usage so far."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Send

from megrez.runtime.serving.http.fields import Fields
from megrez.runtime.serving.http.served import Served


class ClientGone(Exception):
    """The client closed the connection."""


@dataclass(slots=True, kw_only=True)
class Call:
    """gone: done once the client has closed the connection. The counts are of tokens."""

    fields: Fields
    served: Served
    gone: "asyncio.Future[None]"
    send: Send
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    def usage(self) -> dict[str, Any]:
        """In OpenAI's form; its predictions are our drafts, and mentioned if there were any."""
        found: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.prompt_tokens + self.output_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }
        if self.drafted_tokens:
            found["completion_tokens_details"] = {
                "accepted_prediction_tokens": self.accepted_tokens,
                "rejected_prediction_tokens": self.drafted_tokens - self.accepted_tokens,
            }
        return found


@contextlib.asynccontextmanager
async def connected(receive: Receive) -> AsyncIterator["asyncio.Future[None]"]:
    """A future that is done once the client has closed the connection: the body must be read already."""
    gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set_result(None)

    watcher = asyncio.create_task(watch())
    try:
        yield gone
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
