"""A report of results: Markdown with a table per result, and the pictures that its figures allow."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from megrez.runtime.bench import pictures
from megrez.runtime.bench.long_context import length_rows
from megrez.runtime.bench.sweep import sweep_rows
from megrez.runtime.bench.table import table
from megrez.runtime.errors import MegrezError

Result = Mapping[str, Any]
_FACTS = ("cpu", "cores", "threads", "bundle", "target", "model", "url", "system", "python")


def write_report(results: Mapping[str, Result], folder: Path) -> str:
    """Write report.md and its pictures; returns where. results: by the name that they have in it.

    Raises MissingExtraError without matplotlib, MegrezError where the folder cannot be written.
    """
    pictures.check_library()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawn = draw(results, folder)
        path = folder / "report.md"
        path.write_text(markdown(results, drawn), encoding="utf-8")
    except OSError as error:
        raise MegrezError(f"-o {folder} cannot be written ({error.strerror}): choose another folder") from error
    return f"{path}, with {', '.join(drawn) or 'no picture'}"


def draw(results: Mapping[str, Result], folder: Path) -> list[str]:
    """The names of the pictures that were written."""
    drawn: list[str] = []

    def make(name: str, found: Mapping[str, Any], write: Callable[..., None]) -> None:
        if found:
            write(found, path=folder / f"{name}.png")
            drawn.append(f"{name}.png")

    make("throughput-latency", curves(results), pictures.throughput_latency)
    make("itl", histograms(results), pictures.itl_histogram)
    long = {name: one["points"] for name, one in results.items() if one["view"] == "long-context"}
    make("decode-cost", long, pictures.decode_cost)
    for name, one in results.items():
        if one["view"] == "needle":
            make(f"needle-{name}", {"cells": one["cells"]}, lambda found, path: pictures.heat_map(found["cells"], path))
        environment = one["environment"]
        bandwidth, compute = (environment.get(what) for what in ("memory_read_bytes_per_s", "float32_flops_per_s"))
        if bandwidth:
            points = roofline_points(one)
            make(f"roofline-{name}", points, partial(pictures.roofline, bandwidth=bandwidth, compute=compute))
    return drawn


def curves(results: Mapping[str, Result]) -> dict[str, pictures.Curve]:
    """Of sweeps under load: batch, and output tokens per second of all and per user, by name, prompt and context."""
    found: dict[str, pictures.Curve] = {}
    for name, result in results.items():
        for point in result["points"] if result["view"] == "sweep" and result["of"] == "load" else ():
            each = point["output_tokens_per_s_per_user"]
            if each is None:
                continue
            context = "" if point["context"] is None else f", context {point['context']}"
            curve = found.setdefault(f"{name}: prompt {point['prompt']}{context}", [])
            curve.append((point["batch"], point["aggregate_output_tokens_per_s"], each))
    return found


def histograms(results: Mapping[str, Result]) -> dict[str, Result]:
    """Of runs under load, those of a sweep included."""
    return {name: one["itl_histogram"] for name, one in _runs(results).items() if one.get("itl_histogram")}


def roofline_points(result: Result) -> dict[str, Result]:
    """Decode and prefill, of each point of a sweep."""
    found = {}
    for name, run in _runs({"": result}).items():
        for phase, work in (run.get("work") or {}).items():
            if work is not None:
                found[f"{phase} {name}".strip()] = work
    return found


def _runs(results: Mapping[str, Result]) -> dict[str, Result]:
    """Single runs by name; a sweep's points are runs."""
    found: dict[str, Result] = {}
    for name, result in results.items():
        if result["view"] != "sweep":
            found[name] = result
            continue
        for point in result["points"]:
            found[f"{name} {point['batch']} x {point['prompt']}".strip()] = point
    return found


def markdown(results: Mapping[str, Result], drawn: list[str]) -> str:
    lines = ["# Benchmark report", "", *(f"![{name.removesuffix('.png')}]({name})" for name in drawn), ""]
    for name, result in results.items():
        lines += [f"## {name}", "", *_body(result), ""]
        lines += [f"**Stopped early:** {result['stopped']}", ""] if result.get("stopped") else []
        lines += [f"**Warning:** {one}" for one in result.get("warnings", ())]
        environment = result["environment"]
        facts = [f"{fact} {environment[fact]}" for fact in _FACTS if environment.get(fact) is not None]
        versions = [f"{library} {version}" for library, version in (environment.get("versions") or {}).items()]
        lines += ["", f"Measured on: {', '.join([*facts, *versions])}", ""]
        lines += ["```sh", environment["command"], "```", ""]
    return "\n".join(lines)


def _body(result: Result) -> list[str]:
    rows = {"sweep": sweep_rows, "long-context": length_rows}.get(result["view"])
    if rows is None:
        return ["```", table(result), "```"]
    header, body = rows(result)
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *body)]
