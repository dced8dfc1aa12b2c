"""A request and the sequences it asks for; knows neither the session nor who else is served."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from megrez.runtime.logprobs import TokenLogprobs
from megrez.runtime.sampling import Sampler, SamplingParams
from megrez.runtime.serving.guided import Grammar, Matcher
from megrez.runtime.serving.text_stream import FinishReason, TextStream

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One generated token of sequence `index` (0 .. n - 1) of a request.

    text: what became certain with it, which may be nothing, or the text of earlier tokens too. seconds: since the
    sequence's previous token, since the request's arrival for its first. logprobs: None where none were asked for.
    stop_reason: the stop token or stop string that ended it. cached_tokens: of the prompt, taken from the KV cache.
    prompt_logprobs: with the first token of sequence 0, one entry per prompt token but the first.
    """

    index: int
    token: int
    text: str
    seconds: float
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None


Sink = Callable[["Token | Exception"], None]


@dataclass(slots=True, kw_only=True)
class Request:
    """prompt_ids: at least one. sink: called in the engine's thread with every token, or with the error that ended it.

    reuse_prefix: whether cached tokens of earlier prompts may serve. grammar: params.guided, compiled.
    number: unique in the process.
    """

    prompt_ids: list[int]
    params: SamplingParams
    sink: Sink
    reuse_prefix: bool = True
    grammar: Grammar | None = None
    number: int = field(default_factory=lambda: next(_numbers))
    arrival: float = field(default_factory=time.perf_counter)


@dataclass(slots=True, kw_only=True, eq=False)
class Generation:
    """One sequence of a request, waiting or running.

    ids: prompt and output. cached: how many of them the slot holds. slot, sampler: None while it waits. limit: most
    tokens of output. since: when the wait for its next token began. first: the sibling that computes the shared prompt,
    if any. matcher: where it stands in its grammar; None where it is not guided.
    """

    request: Request
    index: int
    text: TextStream
    limit: int
    ids: list[int]
    since: float
    first: "Generation | None" = None
    matcher: Matcher | None = None
    slot: int | None = None
    sampler: Sampler | None = None
    cached: int = 0
    cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def output_tokens(self) -> int:
        return len(self.ids) - len(self.request.prompt_ids)

    @property
    def pending(self) -> int:
        """Tokens that are not cached yet: the rest of the prompt, then one at a time."""
        return len(self.ids) - self.cached

    @property
    def is_prefilling(self) -> bool:
        return self.cached < len(self.request.prompt_ids) and self.pending > 1
