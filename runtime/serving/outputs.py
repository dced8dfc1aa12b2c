"""What a finished request is to a caller, under vLLM's names: RequestOutput and CompletionOutput."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from megrez.runtime.logprobs import TokenLogprobs
from megrez.runtime.serving.request import Token
from megrez.runtime.serving.text_stream import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One sequence. token_ids: all that were generated, a stop token included, whose text is not.

    logprobs: one entry per token, None where none were asked for. stop_reason: the stop token or string, if any.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """The answer to one prompt. num_cached_tokens: prompt tokens that were taken from the KV cache."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    prompt_logprobs: tuple[TokenLogprobs, ...] | None
    outputs: tuple[CompletionOutput, ...]
    num_cached_tokens: int
    finished: bool


def completion(index: int, tokens: Iterable[Token]) -> CompletionOutput:
    """Sequence `index` of the tokens of a request."""
    own = [token for token in tokens if token.index == index]
    logprobs = tuple(token.logprobs for token in own if token.logprobs is not None)
    last = own[-1] if own else None
    return CompletionOutput(
        index=index,
        text="".join(token.text for token in own),
        token_ids=tuple(token.token for token in own),
        logprobs=logprobs or None,
        finish_reason=None if last is None else last.finish_reason,
        stop_reason=None if last is None else last.stop_reason,
    )


def request_output(
    number: int, prompt: str | None, prompt_ids: Sequence[int], n: int, tokens: Sequence[Token]
) -> RequestOutput:
    firsts = [token for token in tokens if token.index == 0][:1]
    return RequestOutput(
        request_id=str(number),
        prompt=prompt,
        prompt_token_ids=tuple(prompt_ids),
        prompt_logprobs=firsts[0].prompt_logprobs if firsts else None,
        outputs=tuple(completion(index, tokens) for index in range(n)),
        num_cached_tokens=firsts[0].cached_tokens if firsts else 0,
        finished=sum(token.finish_reason is not None for token in tokens) == n,
    )
