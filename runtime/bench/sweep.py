"""One benchmark at every combination of batch, prompt length and context; knows neither engines nor transports."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megrez.runtime.bench.drive import INTERRUPTED
from megrez.runtime.errors import MegrezError, UsageError

Result = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """batch: requests in flight, or slots of a bare session. context: tokens per slot; None: what requests need."""

    batch: int
    prompt_tokens: int
    context: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """In the order in which points are measured: contexts, in each prompts, in each batches."""

    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    contexts: tuple[int | None, ...]

    def points(self) -> Iterator[Point]:
        for context, prompt, batch in itertools.product(self.contexts, self.prompts, self.batches):
            yield Point(batch=batch, prompt_tokens=prompt, context=context)

    def check(self, output_tokens: int, longest: int | None) -> None:
        """Raise UsageError for the first point whose tokens do not fit, before anything is measured.

        longest: the bundle's context; None where it is not known.
        """
        for point in self.points():
            most = point.context or longest
            if most is not None and point.prompt_tokens + output_tokens > most + 1:
                raise UsageError(
                    f"{point.prompt_tokens} prompt and {output_tokens} output tokens do not fit the context of {most}: "
                    "leave that point out"
                )

    def describe(self) -> Result:
        return {"batch": self.batches, "prompt_tokens": self.prompts, "context": self.contexts}


def run_sweep(grid: Grid, measure: Callable[[Point], Result], note: Callable[[Point, Result], None]) -> Result:
    """Every point's result. One that cannot be measured, or ends early, ends the sweep; what came before it is kept.

    measure: raises MegrezError. Raises what the first point raises.
    """
    points: list[Result] = []
    stopped = None
    for point in grid.points():
        try:
            found = measure(point)
        except (MegrezError, MemoryError, KeyboardInterrupt) as error:
            if not points:
                raise
            stopped = _reason(point, error)
            break
        points.append({"batch": point.batch, "prompt": point.prompt_tokens, "context": point.context, **found})
        note(point, found)
        if found["stopped"] is not None:
            stopped = found["stopped"]
            break
    return {
        "view": "sweep",
        "of": points[0]["view"],
        "points": points,
        "spread": _widest(points),
        "stopped": stopped,
        "workload": grid.describe(),
        "environment": points[0]["environment"],
    }


def _reason(point: Point, error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    said = "the machine has too little memory" if isinstance(error, MemoryError) else " ".join(str(error).split())
    return f"batch {point.batch}, prompt {point.prompt_tokens}, context {point.context or 'as needed'}: {said}"


def _widest(points: Sequence[Result]) -> dict[str, float]:
    """Of each figure the largest spread of any point."""
    names = {name for point in points for name in point["spread"]}
    return {name: max(point["spread"].get(name, 0.0) for point in points) for name in sorted(names)}


def sweep_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The header and a row per point; speeds in tokens per second, times in milliseconds."""
    if result["of"] == "latency":
        columns = {
            "prefill": ("prefill_tokens_per_s", 1.0),
            "decode": ("decode_tokens_per_s", 1.0),
            "ttft ms": ("ttft_s", 1e3),
        }
    else:
        columns = {
            "output": ("aggregate_output_tokens_per_s", 1.0),
            "per user": ("output_tokens_per_s_per_user", 1.0),
            "ttft p50 ms": ("ttft_p50_s", 1e3),
            "itl p50 ms": ("itl_p50_s", 1e3),
            "itl p99 ms": ("itl_p99_s", 1e3),
        }
    rows = []
    for point in result["points"]:
        cells = [str(point["batch"]), str(point["prompt"]), str(point["context"] or "-")]
        cells += [_cell(point.get(name), scale) for name, scale in columns.values()]
        widest = max(point["spread"].values(), default=None)
        rows.append([*cells, "-" if widest is None else f"{widest:.1%}"])
    return ["batch", "prompt", "context", *columns, "spread"], rows


def sweep_table(result: Mapping[str, Any]) -> str:
    header, rows = sweep_rows(result)
    return "\n".join("".join(f"{cell:>13}" for cell in row) for row in (header, *rows))


def _cell(value: float | None, scale: float) -> str:
    return "-" if value is None else f"{value * scale:.1f}"
