"""A sequence's next token from the logits of its last one, and whether it ends there; knows no session."""

from collections.abc import Collection

from megrez.runtime.errors import UsageError
from megrez.runtime.logprobs import TokenLogprobs
from megrez.runtime.sampling import Sampler, Scores
from megrez.runtime.serving.guided import Allowed
from megrez.runtime.serving.request import Generation, Request
from megrez.runtime.serving.text_stream import FinishReason


def new_sampler(request: Request, index: int, vocab_size: int) -> Sampler:
    """Of sequence `index`; UsageError for token ids that the vocabulary does not have."""
    if unknown := [i for i in request.params.stop_token_ids if not 0 <= i < vocab_size]:
        raise UsageError(f"stop_token_ids has {unknown[0]}, the vocabulary {vocab_size}: give ids below that")
    return Sampler(request.params, request.prompt_ids, vocab_size, index=index)


def sample(one: Generation, logits: Scores, stop_ids: Collection[int]) -> tuple[int, TokenLogprobs | None]:
    """logits: [vocab_size]. stop_ids: the model's own stop tokens."""
    assert one.sampler is not None
    params = one.request.params
    early = one.output_tokens < params.min_tokens
    blocked = (*stop_ids, *params.stop_token_ids) if early else ()
    if one.matcher is None:
        return one.sampler.next(logits, blocked=blocked)
    allowed = one.matcher.allowed()
    if early or params.ignore_eos:
        allowed = _without(allowed, blocked or stop_ids)
    return one.sampler.next(logits, allowed=allowed)


def finish_reason(one: Generation, token: int, stop_ids: Collection[int]) -> FinishReason | None:
    """Why the sequence ends with `token`, which is not among its ids yet."""
    params = one.request.params
    if token in params.stop_token_ids or (token in stop_ids and not params.ignore_eos):
        return "stop"
    return "length" if one.output_tokens + 1 >= one.limit else None


def _without(allowed: Allowed, blocked: Collection[int]) -> Allowed:
    """The allowed tokens without `blocked`, unless the grammar allows no others."""
    others = allowed.copy()
    others[list(blocked)] = False
    return others if others.any() else allowed
