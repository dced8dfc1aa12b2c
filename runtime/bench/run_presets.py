"""Runs the presets that measure a bundle at many prompt lengths: needle in a haystack, decoding at long contexts."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from megrez.runtime.bench import long_context, needle
from megrez.runtime.bench.drive import INTERRUPTED
from megrez.runtime.bench.environment import describe_environment
from megrez.runtime.bench.live import Live
from megrez.runtime.bench.local import MeteredSession
from megrez.runtime.bench.results import add_host, add_session, size_of, stop_meter
from megrez.runtime.bench.sensors.meter import Meter
from megrez.runtime.bundle import Bundle
from megrez.runtime.chat import ChatTemplate
from megrez.runtime.engines import open_session
from megrez.runtime.errors import EngineError
from megrez.runtime.serving.llm import LLM
from megrez.runtime.text import Text
from megrez.runtime.threads import default_threads

Result = dict[str, Any]


def run_long_context(
    bundle: Bundle,
    *,
    lengths: Sequence[int] | None,
    repeat: int,
    context: int | None,
    threads: int | None,
    seed: int,
    live: Live,
) -> Result:
    """Decoding at each length, by default from 128 tokens to the context. What was measured before an end is kept."""
    used, meter = threads or default_threads(), Meter()
    environment = describe_environment(bundle, used) | {"slots": 1, "context": context}
    with contextlib.closing(open_session(bundle, threads=used, slots=1, capacity=context)) as opened:
        session, size = MeteredSession(session=opened), size_of(opened)
        wanted = tuple(lengths or long_context.default_lengths(opened.capacity))
        points = long_context.measure_lengths(session, wanted, repeat=repeat, seed=seed)
        meter.start()
        kept, stopped = _keep(points, live, lambda point: long_context.STEPS * (repeat + 1))
    found = long_context.summarise_lengths(kept)
    stop_meter(meter, found, len(kept) * long_context.STEPS * (repeat + 1))
    workload = {"preset": "long-context", "lengths": wanted, "output_tokens": long_context.STEPS, "seed": seed}
    result = found | {"stopped": stopped, "workload": workload}
    add_session(result, environment, bundle, session.total, size, threads=used)
    return result


def run_needle(
    bundle: Bundle,
    *,
    lengths: Sequence[int] | None,
    depths: Sequence[float] | None,
    repeat: int,
    context: int | None,
    threads: int | None,
    seed: int,
    live: Live,
) -> Result:
    """Facts found by length and depth, by default ten of each. Cells that were asked before an end are kept."""
    used = threads or default_threads()
    environment = describe_environment(bundle, used) | {"slots": 1, "context": context}
    text = Text.open(bundle)
    template = ChatTemplate.open(bundle, text)
    session = open_session(bundle, threads=used, slots=1, capacity=context)
    capacity = session.capacity
    wanted, deep = tuple(lengths or needle.default_lengths(capacity)), tuple(depths or needle.DEPTHS)
    with LLM.over(bundle, session, text, template) as llm:
        found = needle.run_cells(
            llm, wanted, deep, context=capacity, repeat=repeat, seed=seed, chat=template is not None
        )
        cells, stopped = _keep(found, live, lambda cell: cell["of"] * needle.ANSWER_TOKENS)
    workload = {"preset": "needle", "lengths": wanted, "depths": deep, "repeat": repeat, "seed": seed}
    head = {"view": "needle", "cells": cells, "spread": {}, "stopped": stopped, "workload": workload}
    add_host(head, bundle)
    return head | {"environment": environment}


def _keep(found: Iterator[Result], live: Live, tokens: Callable[[Result], int]) -> tuple[list[Result], str | None]:
    """All of them; or those before Ctrl-C or an engine's failure, and its reason."""
    kept: list[Result] = []
    try:
        for one in found:
            kept.append(one)
            live.done += 1
            live.tokens += tokens(one)
    except (KeyboardInterrupt, EngineError) as error:
        if not kept:
            raise
        return kept, INTERRUPTED if isinstance(error, KeyboardInterrupt) else str(error)
    return kept, None
