"""A request and its sequences; independent of the session and of other requests."""

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

    text: the text that it completed, perhaps none, perhaps that of earlier tokens too. seconds: since the sequence's
    previous token; for its first, since the request's arrival. logprobs: None if not requested. stop_reason: the stop
    token or stop string that ended the sequence. cached_tokens: prompt tokens that were in the KV cache.
    prompt_logprobs: with the first token of sequence 0, one entry per prompt token except the first. drafted_tokens,
    accepted_tokens: of the sequence so far, how many tokens were drafted and how many of those were sampled too.
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
    drafted_tokens: int = 0
    accepted_tokens: int = 0


Sink = Callable[["Token | Exception"], None]


@dataclass(slots=True, kw_only=True)
class Request:
    """prompt_ids: at least one. sink: called in the engine's thread with every token, or the error that ended it.

    reuse_prefix: use the cached prefix of an earlier prompt. is_awaited: someone waits for each token; if nobody does,
    prompts are read first, which takes less time in all. grammar: params.guided, compiled. number: unique in the
    process.
    """

    prompt_ids: list[int]
    params: SamplingParams
    sink: Sink
    reuse_prefix: bool = True
    is_awaited: bool = True
    grammar: Grammar | None = None
    number: int = field(default_factory=lambda: next(_numbers))
    arrival: float = field(default_factory=time.perf_counter)


@dataclass(slots=True, kw_only=True, eq=False)
class Generation:
    """One sequence of a request, waiting or running.

    ids: prompt and output. cached: how many of them the slot holds. slot, sampler: None while it waits. limit: most
    output tokens. since: time of its previous token. first: the sequence of the same request that computes the prompt,
    unless it is this one. cached_tokens, drafted_tokens, accepted_tokens: as in Token. matcher:
    the state of its grammar; None if it is not guided.
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
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def output_tokens(self) -> int:
        return len(self.ids) - len(self.request.prompt_ids)

    @property
    def pending(self) -> int:
        """Tokens to be computed: the rest of the prompt, later one at a time."""
        return len(self.ids) - self.cached

    @property
    def is_prefilling(self) -> bool:
        return self.cached < len(self.request.prompt_ids) and self.pending > 1
