"""The static graphs of a checkpoint in float32, stepped as a host steps an NPU: knows no quantisation."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.graph.passes.all_positions import AllPositions
from megrez.compile.graph.passes.explicit_attention import mask_name
from megrez.compile.graph.passes.name_boundaries import NameBoundaries
from megrez.compile.graph.passes.split_rotary import SplitRotary
from megrez.compile.graph.rope import rotary_tables
from megrez.compile.graph.static.graphs import static_graph
from megrez.compile.graph.static.parts import LayerRange, head_part, layers_part
from tests.graphs import canonical, run

Float32 = NDArray[np.float32]
MASKED = np.float32(-1e4)


def lowered(folder: Path) -> tuple[ir.Model, Any]:
    """The graph whose shapes are still free, in float32, and its checkpoint."""
    checkpoint = open_checkpoint(str(folder))
    model = canonical(checkpoint)
    for one in (AllPositions(), NameBoundaries(checkpoint.config.num_hidden_layers), SplitRotary()):
        one(model)
    return model, checkpoint


class FloatHost:
    """One sequence through graphs of so many tokens; slots of the cache that are not filled hold rubbish."""

    def __init__(self, folder: Path, capacity: int, widths: tuple[int, ...]) -> None:
        model, self.checkpoint = lowered(folder)
        self.config, self.capacity, self.length = self.checkpoint.config, capacity, 0
        self.graphs = {width: static_graph(model, self.config, width, capacity) for width in widths}
        self.tables = rotary_tables(self.config, capacity + max(widths))
        self.embedding = self.checkpoint.read("model.embed_tokens.weight")
        g, d = self.config.num_key_value_heads, self.config.head_dim
        rubbish = np.random.default_rng(3).normal(0, 30, (1, g, d, capacity)).astype(np.float32)
        layers = range(self.config.num_hidden_layers)
        self.caches = {f"{i}.key": rubbish.copy() for i in layers}
        self.caches |= {f"{i}.value": np.ascontiguousarray(rubbish.swapaxes(2, 3)) for i in layers}

    def step(self, ids: list[int], width: int) -> Float32:
        """Logits [len(ids), vocab_size]; behind the ids stand rubbish ones up to the graph's width."""
        padded, layers = np.array([*ids, *[17] * (width - len(ids))]), self.config.num_hidden_layers
        positions = self.length + np.arange(width)
        feeds = {f"past_key_values.{key}": cache for key, cache in self.caches.items()}
        feeds |= {"hidden.0": self.embedding[padded][None]}
        feeds |= {f"rotary_{kind}": t[positions][None] for kind, t in zip(("cos", "sin"), self.tables, strict=True)}
        feeds |= {mask_name(window): self.mask(width, window) for window in set(self.config.sliding_windows)}
        for layer in range(layers):
            part = layers_part(self.graphs[width], LayerRange(first=layer, stop=layer + 1))
            feeds |= run(part, {str(one.name): feeds[str(one.name)] for one in part.graph.inputs})
        for key, cache in self.caches.items():
            new, slots = feeds[f"present.{key}"], slice(self.length, self.length + len(ids))
            if key.endswith("key"):
                cache[..., slots] = new[..., : len(ids)]
            else:
                cache[:, :, slots] = new[:, :, : len(ids)]
        self.length += len(ids)
        last = f"hidden.{layers}"
        found: Float32 = run(head_part(self.graphs[width], layers), {last: feeds[last]})["logits"][0, : len(ids)]
        return found

    def mask(self, width: int, window: int | None) -> Float32:
        """[1, 1, width, capacity + width], position by position."""
        mask = np.full((1, 1, width, self.capacity + width), MASKED)
        for row in range(width):
            here = self.length + row
            for position in range(here + 1):
                if window is None or position > here - window:
                    column = position if position < self.length else self.capacity + position - self.length
                    mask[0, 0, row, column] = 0
        return mask
