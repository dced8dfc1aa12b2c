"""Pictures of results in PNG, drawn by matplotlib, which is imported here only; knows no Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megrez.runtime.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Result = Mapping[str, Any]
Curve = list[tuple[int, float, float]]


def check_library() -> None:
    """Raise MissingExtraError where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(needed_for="megrez bench report", library="matplotlib", extra="report") from error


def throughput_latency(curves: Mapping[str, Curve], path: Path) -> None:
    """By name: a point per batch, of output tokens per second of all users and of each. Up and right is better."""
    figure, axes = _figure("Throughput and speed per user")
    for name, points in curves.items():
        axes.plot([each for _, _, each in points], [total for _, total, _ in points], marker="o", label=name)
        for batch, total, each in points:
            axes.annotate(str(batch), (each, total), textcoords="offset points", xytext=(5, 5), fontsize=8)
    axes.set_xlabel("output tokens/s per user (numbers: requests at once)")
    axes.set_ylabel("output tokens/s of all")
    _save(figure, axes, path)


def itl_histogram(histograms: Mapping[str, Result], path: Path) -> None:
    """By name: edges in seconds and counts, shown as shares of all gaps."""
    figure, axes = _figure("Time between tokens (ITL)")
    for name, found in histograms.items():
        total = sum(found["counts"])
        edges = [edge * 1e3 for edge in found["edges_s"]]
        axes.stairs([count / total for count in found["counts"]], edges, label=name, fill=len(histograms) == 1)
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("share of the gaps")
    _save(figure, axes, path)


def roofline(points: Mapping[str, Result], bandwidth: float, compute: float | None, path: Path) -> None:
    """By name: FLOP/s and FLOP per byte, below the limits that were measured (Williams et al., 2009)."""
    figure, axes = _figure("Roofline: what memory and arithmetic allow")
    places = [one["flops_per_byte"] for one in points.values()] + ([compute / bandwidth] if compute else [])
    low, high = min(places) / 4, max(places) * 4
    steps = [low * (high / low) ** (n / 100) for n in range(101)]
    limits = [min(bandwidth * at, compute or float("inf")) / 1e9 for at in steps]
    axes.plot(steps, limits, color="black", label="measured limit")
    for name, one in points.items():
        axes.plot(one["flops_per_byte"], one["flops_per_s"] / 1e9, marker="o", linestyle="none", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP per byte read")
    axes.set_ylabel("GFLOP/s")
    _save(figure, axes, path)


def heat_map(cells: Sequence[Result], path: Path) -> None:
    """Of a needle run: depth by length, green where all facts were found."""
    lengths, depths = (sorted({one[name] for one in cells}) for name in ("length", "depth"))
    found = {(one["depth"], one["length"]): one["found"] / one["of"] for one in cells}
    shares = [[found.get((depth, length), float("nan")) for length in lengths] for depth in depths]
    figure, axes = _figure("Facts found in a long prompt")
    image = axes.imshow(shares, aspect="auto", cmap="RdYlGn", vmin=0, vmax=1)
    axes.set_xticks(range(len(lengths)), [str(one) for one in lengths], rotation=45)
    axes.set_yticks(range(len(depths)), [f"{one:.0%}" for one in depths])
    axes.set_xlabel("tokens of the prompt")
    axes.set_ylabel("depth of the fact")
    figure.colorbar(image, label="share of the facts found")
    figure.savefig(path, dpi=120)


def decode_cost(runs: Mapping[str, Sequence[Result]], path: Path) -> None:
    """By name: milliseconds per token over the tokens in the cache."""
    figure, axes = _figure("Cost of a token as the context fills")
    for name, points in runs.items():
        cost = [one["decode_step_s"] * 1e3 for one in points]
        axes.plot([one["length"] for one in points], cost, marker="o", label=name)
    axes.set_xlabel("cached tokens")
    axes.set_ylabel("milliseconds per token")
    axes.set_ylim(bottom=0)
    _save(figure, axes, path)


def _figure(title: str) -> "tuple[Figure, Axes]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)  # no display, and no state shared with a caller of pyplot
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def _save(figure: "Figure", axes: "Axes", path: Path) -> None:
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
