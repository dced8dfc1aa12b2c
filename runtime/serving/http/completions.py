"""/v1/completions: texts or token ids to continue, with echo and log-probabilities in OpenAI's legacy form."""

import asyncio
import dataclasses
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megrez.runtime.logprobs import TokenLogprobs
from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.guided import Grammar
from megrez.runtime.serving.http.call import Call
from megrez.runtime.serving.http.errors import ApiError
from megrez.runtime.serving.http.fields import Fields
from megrez.runtime.serving.http.guided import compile_constraint, read_constraint
from megrez.runtime.serving.http.sampling import read_sampling, read_top_logprobs
from megrez.runtime.serving.http.served import Served
from megrez.runtime.serving.http.spelling import legacy_logprobs
from megrez.runtime.serving.http.stream import EventStream, Tokens
from megrez.runtime.serving.http.unsupported import REFUSED_BY_COMPLETIONS, refuse_unsupported
from megrez.runtime.serving.request import Token

DEFAULT_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """prompts: token ids of each. scores_only: max_tokens 0 with echo scores the prompt and generates nothing.

    grammar: constrains the answers.
    """

    prompts: list[list[int]]
    params: SamplingParams
    echo: bool
    scores_only: bool
    grammar: Grammar | None


async def complete(call: Call) -> dict[str, Any] | None:
    """The whole answer, or None where it was streamed."""
    ask = await asyncio.to_thread(_read, call.fields, call.served)
    head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
    head["model"] = call.served.name
    stream, include_usage = call.fields.flag("stream"), read_include_usage(call.fields)
    async with Tokens(call, ask.prompts, ask.params, ask.grammar) as tokens:
        if stream:
            await _stream(call, ask, tokens, head, include_usage=include_usage)
            return None
        found: dict[tuple[int, int], list[Token]] = {}
        async for at, token in tokens:
            found.setdefault((at, token.index), []).append(token)
    if ask.scores_only:
        call.output_tokens = 0
    choices = [
        _choice(call.served, ask, at, index, own, found[at, 0][0].prompt_logprobs or ())
        for (at, index), own in sorted(found.items())
    ]
    return {**head, "choices": choices, "usage": call.usage()}


def read_include_usage(fields: Fields) -> bool:
    options = fields.fields("stream_options")
    return options is not None and options.flag("include_usage")


def _read(fields: Fields, served: Served) -> Ask:
    served.check_model(fields)
    refuse_unsupported(fields, REFUSED_BY_COMPLETIONS)
    asked = fields.integer("max_tokens", 0)
    max_tokens = DEFAULT_TOKENS if asked is None else asked
    llm = served.llm
    params = read_sampling(fields, llm.default_params, max_tokens=max(max_tokens, 1), vocab_size=llm.session.vocab_size)
    logprobs, echo = read_top_logprobs(fields, "logprobs"), fields.flag("echo")
    if max_tokens == 0 and not echo:
        raise ApiError("max_tokens must be 1 or more where echo is false", param="max_tokens")
    if fields.integer("best_of", 1) not in (None, params.n):
        raise ApiError("best_of other than n is not supported: leave it out", param="best_of")
    if echo and fields.flag("stream"):
        raise ApiError("echo cannot be streamed: ask for one of the two", param="echo")
    return Ask(
        prompts=_read_prompts(fields, served),
        params=dataclasses.replace(params, logprobs=logprobs, prompt_logprobs=logprobs if echo else None),
        echo=echo,
        scores_only=max_tokens == 0,
        grammar=compile_constraint(llm, read_constraint(fields)),
    )


def _read_prompts(fields: Fields, served: Served) -> list[list[int]]:
    """A text, token ids, or a list of either."""
    prompt = fields.data.get("prompt")
    if prompt is None:
        raise ApiError("prompt is missing: give a text, token ids, or a list of either", param="prompt")
    single = isinstance(prompt, str) or (isinstance(prompt, list) and prompt and type(prompt[0]) is int)
    asked = [prompt] if single else prompt
    if not isinstance(asked, list) or not 1 <= len(asked) <= served.most_prompts:
        raise fields.fault("prompt", f"a text, token ids, or a list of 1 to {served.most_prompts} of either")
    found = []
    for one in asked:
        if isinstance(one, str):
            found.append(served.llm.text.encode(one))
        elif isinstance(one, list) and all(type(token) is int for token in one):
            found.append(one)
        else:
            raise fields.fault("prompt", "a text, token ids, or a list of either")
    return found


def _choice(
    served: Served, ask: Ask, at: int, index: int, own: Sequence[Token], scored: Sequence[TokenLogprobs]
) -> dict[str, Any]:
    """scored: the prompt's log-probabilities, which its first sequence carries."""
    text = "" if ask.scores_only else "".join(token.text for token in own)
    entries: list[TokenLogprobs | None] = [] if ask.scores_only else [token.logprobs for token in own]
    prompt = ask.prompts[at]
    if ask.echo:
        text = served.llm.text.decode(prompt) + text
        entries = [None, *scored, *entries]
    logprobs = None
    if ask.params.logprobs is not None:
        logprobs = legacy_logprobs(served.spelling, entries, 0, first=prompt[0])
    return {
        "index": at * ask.params.n + index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": "length" if ask.scores_only else own[-1].finish_reason,
    }


async def _stream(call: Call, ask: Ask, tokens: Tokens, head: dict[str, Any], *, include_usage: bool) -> None:
    events = EventStream(call.send)
    usage = {"usage": None} if include_usage else {}
    offsets = [0] * (len(ask.prompts) * ask.params.n)
    async for at, token in tokens:
        index = at * ask.params.n + token.index
        logprobs = None
        if token.logprobs is not None:
            logprobs = legacy_logprobs(call.served.spelling, [token.logprobs], offsets[index])
        offsets[index] += len(token.text)
        if not (token.text or logprobs or token.finish_reason):
            continue
        choice = {"index": index, "text": token.text, "logprobs": logprobs, "finish_reason": token.finish_reason}
        await events.event({**head, "choices": [choice], **usage})
    if include_usage:
        await events.event({**head, "choices": [], "usage": call.usage()})
    await events.done()
