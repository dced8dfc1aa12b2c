"""Sensitivities as a text table and as a picture; knows figures by layer and projection group only."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from megrez.calibration.reference.decoder import GROUPS


def table(divergences: Mapping[str, float], higher_precision: frozenset[str], layers: int) -> str:
    """A line per layer: what quantising each group alone costs, in millinats; * marks higher precision."""
    lines = ["layer" + "".join(f"{group:>11}" for group in GROUPS)]
    for layer in range(layers):
        cells = []
        for group in GROUPS:
            name = f"model.layers.{layer}.{group}"
            mark = "*" if name in higher_precision else " "
            cells.append(f"{divergences[name] * 1e3:10.3f}{mark}" if name in divergences else f"{'-':>10} ")
        lines.append(f"{layer:5}" + "".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def draw(
    divergences: Mapping[str, float], higher_precision: frozenset[str], layers: int, title: str, path: Path
) -> None:
    """The same as a PNG, colours on a logarithmic scale: layers by groups; crosses mark higher precision.

    Raises OSError where `path` cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    values = np.full((len(GROUPS), layers), np.nan)
    marked = []
    for row, group in enumerate(GROUPS):
        for layer in range(layers):
            name = f"model.layers.{layer}.{group}"
            values[row, layer] = divergences.get(name, np.nan)
            marked += [(layer, row)] if name in higher_precision else []
    figure = Figure(figsize=(max(6.0, 2.5 + 0.3 * layers), 3.2), layout="constrained")
    FigureCanvasAgg(figure)  # no display, and no state shared with a caller of pyplot
    axes = figure.subplots()
    positive = values[values > 0]
    low, high = (float(positive.min()), float(positive.max())) if positive.size else (1e-6, 1.0)
    image = axes.imshow(values, aspect="auto", cmap="viridis", norm=LogNorm(low, max(high, low * 1.001)))
    if marked:
        axes.scatter(*zip(*marked, strict=True), marker="x", color="white", label="higher precision")
    axes.set_yticks(range(len(GROUPS)), [group.replace("_", "-") for group in GROUPS])
    axes.set_xlabel("layer")
    axes.set_title(title)
    figure.colorbar(image, label="KL divergence of quantising it alone, nats")
    figure.savefig(path, dpi=120)
