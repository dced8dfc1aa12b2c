"""One GroupQueryAttention per layer, after which the model still computes what transformers computes."""

from typing import Any

import numpy as np
import onnx_ir.passes.common as common
import pytest
from numpy.typing import NDArray

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.graph.passes.fuse_projections import FuseProjections
from megrez.compile.graph.passes.group_query_attention import GroupQueryAttention
from tests.graphs import IDS, canonical, op_counts, ragged, run
from tests.reference import logits

CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-biases": {"biases": True},
    "qwen2-windows": {"family": "qwen2", "sliding_window": 5, "tied": True},
    "qwen3-windows": {"family": "qwen3", "sliding_window": 5, "biases": True, "tied": True},
}
CAPACITY = 24


def lowered(folder: Any, *, fuse: bool) -> Any:
    checkpoint = open_checkpoint(str(folder))
    model = canonical(checkpoint)
    if fuse:
        FuseProjections(checkpoint)(model)
    assert GroupQueryAttention(checkpoint.config)(model).modified
    common.RemoveUnusedNodesPass()(model)
    return model


def attentions(model: Any) -> list[Any]:
    return [node for node in model.graph if node.op_type == "GroupQueryAttention"]


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_ragged_rows_agree_with_transformers(checkpoint_of: Any, name: str, fuse: bool) -> None:
    folder = checkpoint_of(**CASES[name])
    model = lowered(folder, fuse=fuse)
    rubbish = np.random.default_rng(3).normal(0, 30, (2, 2, CAPACITY, 32)).astype(np.float32)
    caches = {f"{layer}.{kind}": rubbish for layer in (0, 1) for kind in ("key", "value")}

    def step(tokens: list[list[int]], starts: list[int], logits_index: list[int]) -> NDArray[np.float32]:
        width = len(tokens[0])
        feeds = {
            "input_ids": np.array(tokens, np.int64),
            "seqlens_k": np.array(starts, np.int32) + width - 1,
            "total_sequence_length": np.array(max(starts) + width, np.int32),
            "query_seqlens": np.full(2, width, np.int32),
            "logits_index": np.array(logits_index, np.int64),
            **{f"past_key_values.{key}": cache for key, cache in caches.items()},
        }
        found = run(model, feeds)
        caches.update({key: found[f"present.{key}"] for key in caches})
        return np.asarray(found["logits"])

    for row, ids in zip(ragged(step), IDS, strict=True):
        np.testing.assert_allclose(row, logits(folder, ids[: len(row)]), rtol=0, atol=1e-4)


def test_lengths_take_the_place_of_write_indices_and_masks_vanish(checkpoint_of: Any) -> None:
    model = lowered(checkpoint_of(), fuse=False)
    assert [value.name for value in model.graph.inputs[:5]] == [
        "input_ids",
        "seqlens_k",
        "total_sequence_length",
        "query_seqlens",
        "logits_index",
    ]
    counts = op_counts(model)
    assert counts["GroupQueryAttention"] == 2
    gone = {"Attention", "TensorScatter", "RotaryEmbedding", "Transpose", "Range", "LessOrEqual", "Shape"}
    assert not gone & set(counts)


@pytest.mark.parametrize(("name", "windows"), [("llama", [-1, -1]), ("qwen2-windows", [-1, 5])])
def test_each_layer_has_its_window(checkpoint_of: Any, name: str, windows: list[int]) -> None:
    nodes = attentions(lowered(checkpoint_of(**CASES[name]), fuse=False))
    assert [node.attributes["local_window_size"].as_int() for node in nodes] == windows
    assert [node.attributes["num_heads"].as_int() for node in nodes] == [6, 6]
    assert [node.attributes["kv_num_heads"].as_int() for node in nodes] == [2, 2]


@pytest.mark.parametrize(("name", "packed"), [("llama", True), ("qwen3-windows", False)])
def test_a_fused_projection_goes_in_whole_unless_its_heads_are_normed(
    checkpoint_of: Any, name: str, packed: bool
) -> None:
    model = lowered(checkpoint_of(**CASES[name]), fuse=True)
    for node in attentions(model):
        assert [value is None for value in node.inputs[1:3]] == [packed, packed]
    assert op_counts(model)["RMSNormalization"] == (5 if packed else 9)
