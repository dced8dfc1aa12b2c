"""Generate from one prompt in the caller's thread: the engine's loop as an iterator; independent of bundles."""

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
    """Continue `prompt_ids` until a stop id, `max_tokens` or the end of the context; the stop id is yielded last.

    chunk: prompt tokens per step.
    Raises UsageError for a prompt that is empty, too long or has unknown ids, EngineError if the engine fails.
    """
    engine = Engine(session, stop_ids=stop_ids, chunk=chunk)
    return follow(engine, list(prompt_ids), dataclasses.replace(params, max_tokens=max_tokens))


def follow(
    engine: Engine, prompt_ids: list[int], params: SamplingParams, *, reuse_prefix: bool = False
) -> Iterator[Token]:
    """Queue a request for one sequence, and run the engine each time the caller asks for the next token.

    A token's seconds count from that call. Closing the iterator cancels the request. Raises as `generate`.
    """
    received: deque[Token | Exception] = deque()
    request = Request(
        prompt_ids=prompt_ids, params=dataclasses.replace(params, n=1), sink=received.append, reuse_prefix=reuse_prefix
    )
    engine.add(request)
    return _tokens(engine, request, received)


def _tokens(engine: Engine, request: Request, received: "deque[Token | Exception]") -> Iterator[Token]:
    try:
        while True:
            started = time.perf_counter()
            while not received:
                engine.step()
            found = received.popleft()
            if isinstance(found, Exception):
                raise found
            yield dataclasses.replace(found, seconds=time.perf_counter() - started)
            if found.finish_reason:
                return
    finally:
        engine.cancel(request.number)
