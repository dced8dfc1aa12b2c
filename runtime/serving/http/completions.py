"""/v1/completions: texts or token ids to continue, with echo and log-probabilities in OpenAI's legacy form."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Send

from megrez.runtime.logprobs import TokenLogprobs
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.http.errors import ApiError
from megrez.runtime.serving.http.fields import Fields
from megrez.runtime.serving.http.sampling import read_sampling, read_top_logprobs
from megrez.runtime.serving.http.served import Served, usage_of
from megrez.runtime.serving.http.stream import EventStream, Tokens, connected
from megrez.runtime.serving.request import Token

DEFAULT_TOKENS = 16
MOST_PROMPTS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """prompts: token ids of each. max_tokens 0 with echo scores the prompt alone."""

    prompts: list[list[int]]
    params: SamplingParams
    echo: bool
    scores_only: bool
    stream: bool
    include_usage: bool


async def endpoint(fields: Fields, served: Served, receive: Receive, send: Send) -> dict[str, Any] | None:
    return await answer(read_completion(fields, served), served, receive, send)


def read_completion(fields: Fields, served: Served) -> Ask:
    served.check_model(fields)
    max_tokens = fields.integer("max_tokens", 0)
    max_tokens = DEFAULT_TOKENS if max_tokens is None else max_tokens
    params = read_sampling(fields, served.llm.default_params, max_tokens=max(max_tokens, 1))
    logprobs, echo = read_top_logprobs(fields, "logprobs"), fields.flag("echo")
    if max_tokens == 0 and not echo:
        raise ApiError("max_tokens must be 1 or more where echo is false", param="max_tokens")
    if fields.integer("best_of", 1) not in (None, params.n):
        raise ApiError("best_of other than n is not supported: leave it out", param="best_of")
    if fields.text("suffix"):
        raise ApiError("suffix is not supported: leave it out", param="suffix")
    if echo and fields.flag("stream"):
        raise ApiError("echo cannot be streamed: ask for one of the two", param="echo")
    options = fields.fields("stream_options")
    return Ask(
        prompts=read_prompts(fields, served),
        params=served.with_logprobs(params, logprobs, prompt=echo),
        echo=echo,
        scores_only=max_tokens == 0,
        stream=fields.flag("stream"),
        include_usage=options is not None and options.flag("include_usage"),
    )


def read_prompts(fields: Fields, served: Served) -> list[list[int]]:
    """A text, token ids, or a list of either."""
    prompt = fields.data.get("prompt")
    if prompt is None:
        raise ApiError("prompt is missing: give a text, token ids, or a list of either", param="prompt")
    single = isinstance(prompt, str) or (isinstance(prompt, list) and prompt and type(prompt[0]) is int)
    asked = [prompt] if single else prompt
    if not isinstance(asked, list) or not asked or len(asked) > MOST_PROMPTS:
        raise fields.fault("prompt", f"a text, token ids, or a list of 1 to {MOST_PROMPTS} of either")
    found = []
    for one in asked:
        if isinstance(one, str):
            found.append(served.llm.text.encode(one))
        elif isinstance(one, list) and one and all(type(token) is int for token in one):
            found.append(one)
        else:
            raise fields.fault("prompt", "a text, token ids, or a list of either")
    return found


async def answer(ask: Ask, served: Served, receive: Receive, send: Send) -> dict[str, Any] | None:
    """The whole answer, or None where it was streamed to `send`."""
    head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
    head["model"] = served.name
    async with connected(receive) as gone:
        tokens = Tokens(served.llm, gone)
        for prompt in ask.prompts:
            tokens.submit(prompt, ask.params)
        if ask.stream:
            await _stream(ask, tokens, head, served, EventStream(send))
            return None
        found: dict[tuple[int, int], list[Token]] = {}
        async for at, token in tokens:
            own = found.setdefault((at, token.index), [])
            served.observe(ask.prompts[at], token, first=not own)
            own.append(token)
    choices = [_choice(ask, served, at, index, own) for (at, index), own in sorted(found.items())]
    generated = 0 if ask.scores_only else sum(map(len, found.values()))
    cached = sum(own[0].cached_tokens for (_, index), own in found.items() if index == 0)
    return {**head, "choices": choices, "usage": usage_of(sum(map(len, ask.prompts)), generated, cached)}


async def _stream(ask: Ask, tokens: Tokens, head: dict[str, Any], served: Served, events: EventStream) -> None:
    generated = cached = 0
    offsets: dict[int, int] = {}
    async for at, token in tokens:
        generated += 1
        index = at * ask.params.n + token.index
        served.observe(ask.prompts[at], token, first=index not in offsets)
        if index not in offsets:
            offsets[index] = 0
            cached += token.cached_tokens if token.index == 0 else 0
        logprobs = None
        if token.logprobs is not None:
            logprobs = _legacy(served, [token.logprobs], offsets[index])
        offsets[index] += len(token.text)
        choice = {"index": index, "text": token.text, "logprobs": logprobs, "finish_reason": token.finish_reason}
        extra = {"usage": None} if ask.include_usage else {}
        await events.event({**head, "choices": [choice], **extra})
    if ask.include_usage:
        await events.event({**head, "choices": [], "usage": usage_of(sum(map(len, ask.prompts)), generated, cached)})
    await events.raw(b"data: [DONE]\n\n")
    await events.end()


def _choice(ask: Ask, served: Served, at: int, index: int, own: Sequence[Token]) -> dict[str, Any]:
    text = "" if ask.scores_only else "".join(token.text for token in own)
    entries: list[TokenLogprobs | None] = [] if ask.scores_only else [token.logprobs for token in own]
    prompt = ask.prompts[at]
    if ask.echo:
        text = served.llm.text.decode(prompt) + text
        entries = [None, *(own[0].prompt_logprobs or ()), *entries]
    logprobs = None
    if ask.params.logprobs is not None:
        logprobs = _legacy(served, entries, 0, first=prompt[0] if ask.echo else None)
    return {
        "index": at * ask.params.n + index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": "length" if ask.scores_only else own[-1].finish_reason,
    }


def _legacy(
    served: Served, entries: Sequence[TokenLogprobs | None], offset: int, first: int | None = None
) -> dict[str, Any]:
    """tokens, token_logprobs, top_logprobs and text_offset; an echoed prompt's first token has no log-probability."""
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for entry in entries:
        token = served.spell(entry.token if entry is not None else first or 0)
        found["tokens"].append(token)
        found["token_logprobs"].append(None if entry is None else entry.logprob)
        found["top_logprobs"].append(None if entry is None else _top(served, entry))
        found["text_offset"].append(offset)
        offset += len(token)
    return found


def _top(served: Served, entry: TokenLogprobs) -> dict[str, float]:
    """By spelling, the likeliest first; of tokens that are spelt alike the likelier one stays."""
    top: dict[str, float] = {}
    for token, logprob in (*entry.top, (entry.token, entry.logprob)):
        top.setdefault(served.spell(token), logprob)
    return top
