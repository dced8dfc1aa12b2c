"""/v1/chat/completions: conversations to answer."""

import asyncio
import dataclasses
import time
import uuid
from collections.abc import Sequence
from typing import Any

from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.http.call import Call
from megrez.runtime.serving.http.completions import read_include_usage
from megrez.runtime.serving.http.errors import ApiError
from megrez.runtime.serving.http.fields import Fields
from megrez.runtime.serving.http.prompts import encode_messages, read_messages
from megrez.runtime.serving.http.sampling import read_sampling, read_top_logprobs
from megrez.runtime.serving.http.served import Served
from megrez.runtime.serving.http.spelling import chat_logprobs
from megrez.runtime.serving.http.stream import EventStream, Tokens
from megrez.runtime.serving.http.unsupported import refuse_unsupported
from megrez.runtime.serving.request import Token


async def chat(call: Call) -> dict[str, Any] | None:
    """The whole answer, or None where it was streamed."""
    params, prompt = await asyncio.to_thread(_read, call.fields, call.served)
    stream, include_usage = call.fields.flag("stream"), read_include_usage(call.fields)
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": call.served.name}
    async with Tokens(call, [prompt], params) as tokens:
        if stream:
            await _stream(call, params, tokens, head, include_usage=include_usage)
            return None
        found: list[list[Token]] = [[] for _ in range(params.n)]
        async for _, token in tokens:
            found[token.index].append(token)
    choices = [_choice(call.served, params, index, own) for index, own in enumerate(found)]
    return {**head, "object": "chat.completion", "choices": choices, "usage": call.usage()}


def _read(fields: Fields, served: Served) -> tuple[SamplingParams, list[int]]:
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
    prompt = encode_messages(
        served.llm, read_messages(fields), add_generation_prompt=fields.flag("add_generation_prompt", True)
    )
    return dataclasses.replace(params, logprobs=(top or 0) if asks else None), prompt


def _choice(served: Served, params: SamplingParams, index: int, own: Sequence[Token]) -> dict[str, Any]:
    text = "".join(token.text for token in own)
    return {
        "index": index,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": _logprobs(served, own),
        "finish_reason": own[-1].finish_reason,
    }


def _logprobs(served: Served, tokens: Sequence[Token]) -> dict[str, Any] | None:
    entries = [token.logprobs for token in tokens if token.logprobs is not None]
    return chat_logprobs(served.spelling, entries) if entries else None


async def _stream(
    call: Call, params: SamplingParams, tokens: Tokens, head: dict[str, Any], *, include_usage: bool
) -> None:
    events = EventStream(call.send)
    usage = {"usage": None} if include_usage else {}
    head = {**head, "object": "chat.completion.chunk"}
    begun: set[int] = set()

    async def chunk(index: int, delta: dict[str, Any], logprobs: Any = None, finish_reason: str | None = None) -> None:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        await events.event({**head, "choices": [choice], **usage})

    async for _, token in tokens:
        if token.index not in begun:
            begun.add(token.index)
            await chunk(token.index, {"role": "assistant", "content": ""})
        logprobs = _logprobs(call.served, [token])
        if token.text or logprobs or token.finish_reason:
            delta = {"content": token.text} if token.text or logprobs else {}
            await chunk(token.index, delta, logprobs, token.finish_reason)
    if include_usage:
        await events.event({**head, "choices": [], "usage": call.usage()})
    await events.done()
