"""The decode loop: prompt ids in, one frozen step per token out; knows neither text nor engines."""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from megrez.runtime.errors import UsageError
from megrez.runtime.sampling import Sampler, SamplingParams
from megrez.runtime.session import Logits, Session

FinishReason = Literal["stop", "length"]
CHUNK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One token. seconds: from when it was asked for until it was known; the first one's include the prompt's."""

    token: int
    seconds: float
    finish_reason: FinishReason | None


def generate(
    session: Session,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    *,
    stop_ids: Collection[int],
    max_tokens: int | None = None,
    chunk: int = CHUNK,
    cached: int = 0,
) -> Iterator[Step]:
    """Continue `prompt_ids` until a stop id, `max_tokens` or the context's end; the stop id itself is yielded last.

    session: of one slot. cached: how many leading tokens of the prompt the slot holds already, fewer than all.
    Raises UsageError for a prompt that is empty, does not fit or holds unknown ids, EngineError when the engine fails.
    """
    limit = _limit(session, prompt_ids, max_tokens)
    sampler = Sampler(params, prompt_ids, session.vocab_size)
    return _decode(session, prompt_ids[cached:], sampler, frozenset(stop_ids), limit, chunk, cached)


def _decode(
    session: Session,
    fresh_ids: Sequence[int],
    sampler: Sampler,
    stop_ids: frozenset[int],
    limit: int,
    chunk: int,
    length: int,
) -> Iterator[Step]:
    asked = time.perf_counter()
    for start in range(0, len(fresh_ids), chunk):
        ids = fresh_ids[start : start + chunk]
        is_last = start + chunk >= len(fresh_ids)
        logits = _append(session, ids, length, rows=[len(ids) - 1] if is_last else [])
        length += len(ids)
    for remaining in range(limit - 1, -1, -1):
        token = sampler.pick(logits[0])
        reason: FinishReason | None = "stop" if token in stop_ids else None if remaining else "length"
        yield Step(token=token, seconds=time.perf_counter() - asked, finish_reason=reason)
        if reason:
            return
        asked = time.perf_counter()
        logits = _append(session, [token], length, rows=[0])
        length += 1


def _append(session: Session, ids: Sequence[int], length: int, *, rows: list[int]) -> Logits:
    tokens = np.asarray(ids, np.int64).reshape(1, -1)
    return session.step(tokens, np.array([length], np.int32), np.asarray(rows, np.int64))


def _limit(session: Session, prompt_ids: Sequence[int], max_tokens: int | None) -> int:
    """How many tokens may be generated. The last of them is never fed back, so it needs no room in the cache."""
    if not prompt_ids:
        raise UsageError("the prompt is empty: give at least one token")
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}: ask for at least 1")
    if len(prompt_ids) > session.capacity:
        raise UsageError(
            f"the prompt has {len(prompt_ids)} tokens, the context holds {session.capacity}: "
            "shorten it, or compile with a longer context"
        )
    if unknown := [i for i in prompt_ids if not 0 <= i < session.vocab_size]:
        raise UsageError(
            f"token id {unknown[0]} is outside the model's vocabulary of {session.vocab_size}: "
            "the tokenizer does not belong to these weights"
        )
    room = session.capacity - len(prompt_ids) + 1
    return room if max_tokens is None else min(room, max_tokens)
