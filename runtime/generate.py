"""One prompt over a session, in the caller's thread: the engine's loop as an iterator; knows no bundle."""

import dataclasses
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence

from megrez.runtime.sampling import SamplingParams
from megrez.runtime.serving.engine import CHUNK, Engine
from megrez.runtime.serving.request import Request, Token
from megrez.runtime.session import Session


def generate(
    session: Session,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    *,
    stop_ids: Collection[int],
    max_tokens: int | None = None,
    chunk: int = CHUNK,
) -> Iterator[Token]:
    """Continue `prompt_ids` until a stop id, `max_tokens` or the context's end; the stop id itself is yielded last.

    chunk: prompt tokens of a step.
    Raises UsageError for a prompt that is empty, does not fit or holds unknown ids, EngineError when the engine fails.
    """
    engine = Engine(session, stop_ids=stop_ids, chunk=chunk)
    return follow(engine, list(prompt_ids), dataclasses.replace(params, max_tokens=max_tokens))


def follow(
    engine: Engine, prompt_ids: list[int], params: SamplingParams, *, reuse_prefix: bool = False
) -> Iterator[Token]:
    """Queue a request of one sequence, and step the engine for each token that is asked for.

    A token's seconds are from when it was asked for. Leaving the iterator cancels the request. Raises as `generate`.
    """
    heard: deque[Token | Exception] = deque()
    request = Request(
        prompt_ids=prompt_ids, params=dataclasses.replace(params, n=1), sink=heard.append, reuse_prefix=reuse_prefix
    )
    engine.add(request)
    return _tokens(engine, request, heard)


def _tokens(engine: Engine, request: Request, heard: "deque[Token | Exception]") -> Iterator[Token]:
    try:
        while True:
            asked = time.perf_counter()
            while not heard:
                engine.step()
            found = heard.popleft()
            if isinstance(found, Exception):
                raise found
            yield dataclasses.replace(found, seconds=time.perf_counter() - asked)
            if found.finish_reason:
                return
    finally:
        engine.cancel(request.number)
