"""What a decoded token costs as the context fills: a bare session of one slot, from 128 tokens to all that it holds."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from megrez.runtime.errors import UsageError
from megrez.runtime.serving.engine import CHUNK
from megrez.runtime.session import Session

Result = dict[str, Any]
SHORTEST = 128
STEPS = 16


def default_lengths(capacity: int) -> tuple[int, ...]:
    """Doubling from 128, and the longest after which STEPS tokens fit."""
    longest = capacity - STEPS
    doubled = itertools.takewhile(lambda one: one < longest, (SHORTEST << n for n in itertools.count()))
    return (*doubled, longest)


def measure_lengths(
    session: Session,
    lengths: Sequence[int],
    *,
    repeat: int,
    seed: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Result]:
    """A point per length, in ascending order: the prompt grows from one to the next and is read once.

    At each, STEPS tokens are decoded `repeat` times after a warm-up, each time from the same length. Raises UsageError,
    before anything runs, for a length that does not fit.
    """
    wanted = sorted(set(lengths))
    if not wanted or wanted[0] < 1 or wanted[-1] + STEPS > session.capacity:
        raise UsageError(
            f"lengths of {', '.join(map(str, wanted)) or 'nothing'} and {STEPS} tokens after them were asked for, the "
            f"context holds {session.capacity}: choose lengths from 1 to {session.capacity - STEPS}"
        )
    ids = np.random.default_rng(seed).integers(session.vocab_size, size=wanted[-1] + STEPS)

    def points() -> Iterator[Result]:
        held = 0
        for length in wanted:
            began = clock()
            _read(session, ids, held, length)
            seconds = clock() - began
            _decode(session, ids, length)  # a warm-up
            steps = []
            for _ in range(repeat):
                started = clock()
                _decode(session, ids, length)
                steps.append((clock() - started) / STEPS)
            middle = statistics.median(steps)
            yield {
                "length": length,
                "decode_step_s": middle,
                "decode_tokens_per_s": 1 / middle,
                "prefill_tokens_per_s": (length - held) / seconds,
                "spread": (max(steps) - min(steps)) / middle if repeat > 1 else None,
                "repetitions": steps,
            }
            held = length

    return points()


def _read(session: Session, ids: np.ndarray[Any, np.dtype[np.int64]], start: int, end: int) -> None:
    for at in range(start, end, CHUNK):
        part = ids[at : min(at + CHUNK, end)]
        session.step(part, [at], [len(part) - 1])


def _decode(session: Session, ids: np.ndarray[Any, np.dtype[np.int64]], length: int) -> None:
    for at in range(length, length + STEPS):
        session.step(ids[at : at + 1], [at], [0])


def summarise_lengths(points: Sequence[Result]) -> Result:
    """And a line fitted through the points: seconds of a step without cached tokens, and more per cached token."""
    wide = [one["spread"] for one in points if one["spread"] is not None]
    slope = base = None
    if len(points) > 1:
        x, y = ([one[name] for one in points] for name in ("length", "decode_step_s"))
        slope, base = (float(one) for one in np.polyfit(x, y, 1))
    return {
        "view": "long-context",
        "points": list(points),
        "step_s_without_cache": base,
        "step_s_per_cached_token": slope,
        "spread": {"decode_tokens_per_s": max(wide)} if wide else {},
    }


def length_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The header and a row per length."""
    rows = [
        [
            str(one["length"]),
            f"{one['decode_step_s'] * 1e3:.2f}",
            f"{one['decode_tokens_per_s']:.1f}",
            f"{one['prefill_tokens_per_s']:.1f}",
            "-" if one["spread"] is None else f"{one['spread']:.1%}",
        ]
        for one in result["points"]
    ]
    return ["cached tokens", "ms per token", "decode tok/s", "prefill tok/s", "spread"], rows


def length_table(result: Mapping[str, Any]) -> str:
    header, rows = length_rows(result)
    lines = ["".join(f"{cell:>15}" for cell in row) for row in (header, *rows)]
    if result["step_s_per_cached_token"] is not None:
        base, slope = result["step_s_without_cache"] * 1e3, result["step_s_per_cached_token"] * 1e6
        lines.append(f"a step takes {base:.2f} ms and {slope:.3f} ms more per thousand cached tokens")
    return "\n".join(lines)
