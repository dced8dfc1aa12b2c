"""/v1/chat/completions: conversations to answer."""

import asyncio
import dataclasses
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.guided import Grammar
from megrez.runtime.serving.http.call import Call
from megrez.runtime.serving.http.completions import read_include_usage
from megrez.runtime.serving.http.errors import ApiError
from megrez.runtime.serving.http.fields import Fields
from megrez.runtime.serving.http.guided import compile_constraint, read_constraint
from megrez.runtime.serving.http.prompts import encode_messages, read_messages
from megrez.runtime.serving.http.sampling import read_sampling, read_top_logprobs
from megrez.runtime.serving.http.served import Served
from megrez.runtime.serving.http.spelling import chat_logprobs
from megrez.runtime.serving.http.stream import EventStream, Tokens
from megrez.runtime.serving.http.tool_calls import AnswerReader, openai_delta, openai_message
from megrez.runtime.serving.http.tool_choice import read_tool_choice, tool_constraint
from megrez.runtime.serving.http.unsupported import refuse_unsupported
from megrez.runtime.serving.request import Token


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """prompt: token ids. grammar: constrains the answers. functions: the names of those that may be called."""

    prompt: list[int]
    params: SamplingParams
    grammar: Grammar | None
    functions: tuple[str, ...]


async def chat(call: Call) -> dict[str, Any] | None:
    """The whole answer, or None where it was streamed."""
    ask = await asyncio.to_thread(_read, call.fields, call.served)
    stream, include_usage = call.fields.flag("stream"), read_include_usage(call.fields)
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": call.served.name}
    async with Tokens(call, [ask.prompt], ask.params, ask.grammar) as tokens:
        if stream:
            await _stream(call, ask, tokens, head, include_usage=include_usage)
            return None
        found: list[list[Token]] = [[] for _ in range(ask.params.n)]
        async for _, token in tokens:
            found[token.index].append(token)
    choices = [_choice(call.served, ask, index, own) for index, own in enumerate(found)]
    return {**head, "object": "chat.completion", "choices": choices, "usage": call.usage()}


def _read(fields: Fields, served: Served) -> Ask:
    served.check_model(fields)
    refuse_unsupported(fields)
    max_tokens = fields.integer("max_tokens", 1)
    newer = fields.integer("max_completion_tokens", 1)
    params = read_sampling(
        fields,
        served.llm.default_params,
        max_tokens=max_tokens if newer is None else newer,
        vocab_size=served.llm.session.vocab_size,
    )
    asks, top = fields.flag("logprobs"), read_top_logprobs(fields, "top_logprobs")
    if top is not None and not asks:
        raise ApiError("top_logprobs needs logprobs: true", param="top_logprobs")
    tools = read_tool_choice(fields)
    constraint = tool_constraint(tools, served.tool_format, read_constraint(fields))
    generation = fields.flag("add_generation_prompt", True)
    return Ask(
        prompt=encode_messages(served, read_messages(fields), tools.tools, add_generation_prompt=generation),
        params=dataclasses.replace(params, logprobs=(top or 0) if asks else None),
        grammar=compile_constraint(served.llm, constraint),
        functions=tools.names,
    )


def _choice(served: Served, ask: Ask, index: int, own: Sequence[Token]) -> dict[str, Any]:
    reader = AnswerReader(served.tool_format, ask.functions)
    deltas = [delta for token in own for delta in reader.push(token)]
    return {
        "index": index,
        "message": openai_message(deltas),
        "logprobs": _logprobs(served, own),
        "finish_reason": reader.finish_reason,
    }


def _logprobs(served: Served, tokens: Sequence[Token]) -> dict[str, Any] | None:
    entries = [token.logprobs for token in tokens if token.logprobs is not None]
    return chat_logprobs(served.spelling, entries) if entries else None


async def _stream(call: Call, ask: Ask, tokens: Tokens, head: dict[str, Any], *, include_usage: bool) -> None:
    events = EventStream(call.send)
    usage = {"usage": None} if include_usage else {}
    head = {**head, "object": "chat.completion.chunk"}
    readers = [AnswerReader(call.served.tool_format, ask.functions) for _ in range(ask.params.n)]
    begun: set[int] = set()

    async def chunk(index: int, delta: dict[str, Any], logprobs: Any = None, finish_reason: str | None = None) -> None:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        await events.event({**head, "choices": [choice], **usage})

    async for _, token in tokens:
        if token.index not in begun:
            begun.add(token.index)
            await chunk(token.index, {"role": "assistant", "content": ""})
        reader, logprobs = readers[token.index], _logprobs(call.served, [token])
        *firsts, last = _deltas(reader, token, has_logprobs=logprobs is not None)
        for delta in firsts:
            await chunk(token.index, delta, logprobs)
            logprobs = None
        if last is not None:
            await chunk(token.index, last, logprobs, reader.finish_reason)
    if include_usage:
        await events.event({**head, "choices": [], "usage": call.usage()})
    await events.done()


def _deltas(reader: AnswerReader, token: Token, *, has_logprobs: bool) -> list[Any]:
    """The deltas of a token's chunks; the last may carry the finish reason, and is None where there is no chunk."""
    deltas: list[Any] = [openai_delta(delta) for delta in reader.push(token)]
    if not deltas and has_logprobs:
        deltas = [{"content": ""}]
    if token.finish_reason and not (deltas and "content" in deltas[-1]):
        deltas.append({})
    return deltas or [None]
