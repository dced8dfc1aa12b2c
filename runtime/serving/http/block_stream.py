"""Streams an answer as Anthropic's content block events: start, deltas, stop."""

from collections.abc import Awaitable, Callable
from typing import Any

from megrez.runtime.serving.http.anthropic_format import tool_use_block
from megrez.runtime.serving.tools.parser import CallStart, Delta, TextDelta

_NO_TEXT = {"type": "text", "text": ""}


class BlockStream:
    """event: sends an event, given its name and fields."""

    def __init__(self, event: Callable[..., Awaitable[None]]) -> None:
        self._event = event
        self._index = -1
        self._kind: str | None = None  # of the open block

    async def push(self, delta: Delta) -> None:
        if isinstance(delta, CallStart):
            await self._open(tool_use_block(delta.name))
        elif isinstance(delta, TextDelta):
            if self._kind != "text":
                await self._open(_NO_TEXT)
            await self._piece(type="text_delta", text=delta.text)
        else:
            await self._piece(type="input_json_delta", partial_json=delta.text)

    async def end(self) -> None:
        """An answer has at least one block."""
        if self._index < 0:
            await self._open(_NO_TEXT)
        await self._close()

    async def _open(self, block: dict[str, Any]) -> None:
        await self._close()
        self._index += 1
        self._kind = block["type"]
        await self._event("content_block_start", index=self._index, content_block=block)

    async def _close(self) -> None:
        if self._kind is not None:
            await self._event("content_block_stop", index=self._index)
        self._kind = None

    async def _piece(self, **delta: str) -> None:
        await self._event("content_block_delta", index=self._index, delta=delta)
