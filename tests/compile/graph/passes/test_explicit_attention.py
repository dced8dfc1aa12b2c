"""Static graphs that are stepped by a host compute what transformers computes, whatever lies in unfilled slots."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.graphs import IDS, op_counts
from tests.reference import logits
from tests.static import FloatHost

CASES: dict[str, dict[str, Any]] = {
    "llama-biases": {"biases": True},
    "llama3-rope": {"rope": {"rope_type": "linear", "factor": 2.0}},
    "mistral-window": {"family": "mistral", "sliding_window": 5, "tied": True},
    "qwen2-windows": {"family": "qwen2", "sliding_window": 5, "tied": True},
    "qwen3-windows": {"family": "qwen3", "sliding_window": 5, "biases": True, "tied": True},
}
# (tokens that are given, tokens that the graph takes)
STEPS = ((4, 4), (3, 4), (1, 1), (1, 1), (4, 4), (2, 4), (1, 1))


@pytest.mark.parametrize("name", CASES)
def test_chunks_and_single_tokens_agree_with_transformers(checkpoint_of: Any, name: str) -> None:
    folder = checkpoint_of(**CASES[name])
    host = FloatHost(folder, capacity=18, widths=(4, 1))
    found, ids = [], iter(IDS[0])
    for count, width in STEPS:
        found.append(host.step([next(ids) for _ in range(count)], width))
    np.testing.assert_allclose(np.concatenate(found), logits(folder, IDS[0]), rtol=0, atol=1e-4)


def test_shapes_are_static_and_the_cache_is_read_only(checkpoint_of: Any) -> None:
    graph = FloatHost(checkpoint_of(), capacity=20, widths=(4,)).graphs[4]
    counts = op_counts(graph)
    assert counts["Softmax"] == 2 and counts["MatMul"] == 2 * (7 + 2) + 1
    assert not {"Attention", "TensorScatter", "RotaryEmbedding", "LessOrEqual"} & set(counts)
    shapes = {str(value.name): list(value.shape or ()) for value in (*graph.graph.inputs, *graph.graph.outputs)}
    assert shapes["past_key_values.0.key"] == [1, 2, 32, 20] and shapes["past_key_values.0.value"] == [1, 2, 20, 32]
    assert shapes["present.1.key"] == [1, 2, 32, 4] and shapes["present.1.value"] == [1, 2, 4, 32]
    assert shapes["mask"] == [1, 1, 4, 24] and shapes["logits"] == [1, 4, 320]
    values = [value for node in graph.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
    assert [value.name for value in values if value.shape is None or not value.shape.is_static()] == []
