"""/v1/messages: Anthropic's form of conversations, its events and its errors."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.http.call import Call
from megrez.runtime.serving.http.errors import ApiError
from megrez.runtime.serving.http.fields import Fields
from megrez.runtime.serving.http.prompts import encode_messages, read_content, read_messages
from megrez.runtime.serving.http.sampling import read_sampling
from megrez.runtime.serving.http.served import Served
from megrez.runtime.serving.http.stream import EventStream, Tokens
from megrez.runtime.serving.http.unsupported import refuse_unsupported
from megrez.runtime.serving.request import Token

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(error: ApiError) -> dict[str, Any]:
    """An error in Anthropic's form."""
    kind = KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


async def messages(call: Call) -> dict[str, Any] | None:
    """The whole answer, or None where it was streamed."""
    params, prompt = await asyncio.to_thread(_read, call.fields, call.served)
    stream = call.fields.flag("stream")
    head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": call.served.name}
    async with Tokens(call, [prompt], params) as tokens:
        if stream:
            await _stream(call, tokens, head)
            return None
        own = [token async for _, token in tokens]
    text = "".join(token.text for token in own)
    return {**head, "content": [{"type": "text", "text": text}], **_stop(own[-1]), "usage": _usage(call)}


async def count_tokens(call: Call) -> dict[str, Any]:
    return {"input_tokens": len(await asyncio.to_thread(_read_prompt, call.fields, call.served))}


def _read(fields: Fields, served: Served) -> tuple[SamplingParams, list[int]]:
    max_tokens = fields.integer("max_tokens", 1)
    if max_tokens is None:
        raise ApiError("max_tokens is missing: give the most tokens to generate", param="max_tokens")
    params = read_sampling(
        fields,
        served.llm.default_params,
        max_tokens=max_tokens,
        vocab_size=served.llm.session.vocab_size,
        stop_field="stop_sequences",
    )
    if params.n != 1:
        raise fields.fault("n", "1")
    return params, _read_prompt(fields, served)


def _read_prompt(fields: Fields, served: Served) -> list[int]:
    served.check_model(fields)
    refuse_unsupported(fields)
    system = read_content(fields, "system").get("system")
    opening = [{"role": "system", "content": system}] if system else []
    return encode_messages(served.llm, [*opening, *read_messages(fields)])


def _stop(token: Token) -> dict[str, Any]:
    """Why the last token was the last."""
    by_string = isinstance(token.stop_reason, str)
    reason = "max_tokens" if token.finish_reason == "length" else "stop_sequence" if by_string else "end_turn"
    return {"stop_reason": reason, "stop_sequence": token.stop_reason if by_string else None}


def _usage(call: Call) -> dict[str, int]:
    """Anthropic counts cached tokens apart from the others."""
    return {
        "input_tokens": call.prompt_tokens - call.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": call.cached_tokens,
        "output_tokens": call.output_tokens,
    }


async def _stream(call: Call, tokens: Tokens, head: dict[str, Any]) -> None:
    events = EventStream(call.send)

    async def event(name: str, **content: Any) -> None:
        await events.event({"type": name, **content}, name)

    begun = False
    async for _, token in tokens:
        if not begun:
            begun = True
            nothing: Sequence[Any] = []
            opening = {**head, "content": nothing, "stop_reason": None, "stop_sequence": None, "usage": _usage(call)}
            await event("message_start", message=opening)
            await event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        if token.text:
            await event("content_block_delta", index=0, delta={"type": "text_delta", "text": token.text})
        if token.finish_reason:
            await event("content_block_stop", index=0)
            await event("message_delta", delta=_stop(token), usage=_usage(call))
    await event("message_stop")
    await events.end()
