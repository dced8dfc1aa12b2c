"""/v1/messages: Anthropic's form of conversations, its events and its errors."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

from megrez.runtime.serving.http.anthropic_format import content_of, read_conversation, read_tool_choice
from megrez.runtime.serving.http.block_stream import BlockStream
from megrez.runtime.serving.http.call import Call
from megrez.runtime.serving.http.chat import Ask
from megrez.runtime.serving.http.errors import ApiError
from megrez.runtime.serving.http.fields import Fields
from megrez.runtime.serving.http.guided import compile_constraint, read_constraint
from megrez.runtime.serving.http.prompts import encode_messages
from megrez.runtime.serving.http.sampling import read_sampling
from megrez.runtime.serving.http.served import Served
from megrez.runtime.serving.http.stream import EventStream, Tokens
from megrez.runtime.serving.http.tool_calls import AnswerReader
from megrez.runtime.serving.http.tool_choice import ToolChoice, tool_constraint
from megrez.runtime.serving.http.unsupported import REFUSED_BY_MESSAGES, refuse_unsupported
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
    ask = await asyncio.to_thread(_read, call.fields, call.served)
    stream = call.fields.flag("stream")
    head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": call.served.name}
    reader = AnswerReader(call.served.tool_format, ask.functions)
    async with Tokens(call, [ask.prompt], ask.params, ask.grammar) as tokens:
        if stream:
            await _stream(call, reader, tokens, head)
            return None
        own = [token async for _, token in tokens]
    content = content_of(delta for token in own for delta in reader.push(token))
    return {**head, "content": content, **_stop(own[-1], reader), "usage": _usage(call)}


async def count_tokens(call: Call) -> dict[str, Any]:
    return {"input_tokens": len((await asyncio.to_thread(_read_prompt, call.fields, call.served))[0])}


def _read(fields: Fields, served: Served) -> Ask:
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
    prompt, tools = _read_prompt(fields, served)
    grammar = compile_constraint(served.llm, tool_constraint(tools, served.tool_format, read_constraint(fields)))
    return Ask(prompt=prompt, params=params, grammar=grammar, functions=tools.names)


def _read_prompt(fields: Fields, served: Served) -> tuple[list[int], ToolChoice]:
    served.check_model(fields)
    refuse_unsupported(fields, REFUSED_BY_MESSAGES)
    tools = read_tool_choice(fields)
    return encode_messages(served, read_conversation(fields), tools.tools), tools


def _stop(token: Token, reader: AnswerReader) -> dict[str, Any]:
    """Why the last token was the last."""
    by_string = isinstance(token.stop_reason, str)
    ends = {"length": "max_tokens", "tool_calls": "tool_use"}
    reason = ends.get(reader.finish_reason or "", "stop_sequence" if by_string else "end_turn")
    return {"stop_reason": reason, "stop_sequence": token.stop_reason if reason == "stop_sequence" else None}


def _usage(call: Call) -> dict[str, int]:
    """Anthropic counts cached tokens apart from the others."""
    return {
        "input_tokens": call.prompt_tokens - call.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": call.cached_tokens,
        "output_tokens": call.output_tokens,
    }


async def _stream(call: Call, reader: AnswerReader, tokens: Tokens, head: dict[str, Any]) -> None:
    events = EventStream(call.send)

    async def event(name: str, **content: Any) -> None:
        await events.event({"type": name, **content}, name)

    stream = BlockStream(event)
    begun = False
    async for _, token in tokens:
        if not begun:
            begun = True
            nothing: Sequence[Any] = []
            opening = {**head, "content": nothing, "stop_reason": None, "stop_sequence": None, "usage": _usage(call)}
            await event("message_start", message=opening)
        for delta in reader.push(token):
            await stream.push(delta)
        if token.finish_reason:
            await stream.end()
            await event("message_delta", delta=_stop(token, reader), usage=_usage(call))
    await event("message_stop")
    await events.end()
