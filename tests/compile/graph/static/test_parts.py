"""Layers are shared out evenly within the limit, and parts run one after another give what the whole gives."""

from typing import Any

import numpy as np
import pytest

from megrez.compile.graph.static.graphs import static_graph
from megrez.compile.graph.static.parts import LayerRange, head_part, layers_part, split_layers
from tests.graphs import run
from tests.static import lowered


@pytest.mark.parametrize(
    ("layers", "size", "limit", "edges"),
    [
        (32, 70, 640, [0, 8, 16, 24, 32]),
        (30, 4, 640, [0, 30]),
        (7, 100, 250, [0, 1, 3, 5, 7]),
        (3, 900, 640, [0, 1, 2, 3]),
    ],
)
def test_layers_are_shared_out_evenly(layers: int, size: int, limit: int, edges: list[int]) -> None:
    found = split_layers(layers, size, limit)
    assert [part.first for part in found] + [found[-1].stop] == edges
    assert [part.stop for part in found[:-1]] == [part.first for part in found[1:]]


def test_parts_in_a_row_are_the_whole(checkpoint_of: Any) -> None:
    model, checkpoint = lowered(checkpoint_of(family="qwen2", sliding_window=5, tied=True))
    graph = static_graph(model, checkpoint.config, 3, 4)
    whole = layers_part(graph, LayerRange(first=0, stop=2))
    random = np.random.default_rng(0)
    feeds = {str(v.name): random.normal(size=v.shape.numpy()).astype("f4") for v in whole.graph.inputs if v.shape}
    expected = run(whole, feeds)
    found: dict[str, Any] = dict(feeds)
    for layer in (0, 1):
        part = layers_part(graph, LayerRange(first=layer, stop=layer + 1))
        inputs = {str(value.name) for value in part.graph.inputs}
        assert ("mask.5" in inputs, "mask" in inputs) == (layer == 1, layer == 0)
        assert {name.split(".")[1] for name in inputs if name.startswith("past")} == {str(layer)}
        found |= run(part, {name: found[name] for name in inputs})
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-5)
    assert run(head_part(graph, 2), {"hidden.2": found["hidden.2"]})["logits"].shape == (1, 3, 320)
