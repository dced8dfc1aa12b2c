"""Ranges are those of transformers' own hidden states, and caches' scales hold its keys and values."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.graph.static.graphs import static_graph
from megrez.compile.graph.static.observe import CAPACITY, assumed, observe
from megrez.runtime.errors import CheckpointError
from tests.graphs import IDS
from tests.reference import load
from tests.static import lowered

TOKENS = np.array(IDS)


def observed(folder: Path) -> Any:
    model, checkpoint = lowered(folder)
    return observe(static_graph(model, checkpoint.config, TOKENS.shape[1], CAPACITY), checkpoint, TOKENS)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_ranges_and_caches_beside_transformers(checkpoint_of: Any, family: str) -> None:
    folder = checkpoint_of(family=family)
    found = observed(folder)
    with torch.no_grad():
        truth = load(folder)(torch.tensor(IDS), output_hidden_states=True, use_cache=True)
    expected = {"hidden.1": truth.hidden_states[1], "logits": truth.logits}
    for name, tensor in expected.items():
        np.testing.assert_allclose(found.ranges[name], (tensor.min(), tensor.max()), rtol=0, atol=1e-4)
    table = open_checkpoint(str(folder)).read("model.embed_tokens.weight")
    assert found.ranges["hidden.0"] == (float(table.min()), float(table.max()))
    for layer, cache in enumerate(truth.past_key_values.layers):
        for kind, tensor in (("key", cache.keys), ("value", cache.values)):
            low, high = found.ranges[f"present.{layer}.{kind}"]
            assert (low, high) == pytest.approx((float(tensor.min()), float(tensor.max())), abs=1e-4)
            codes = found.caches[f"{layer}.{kind}"]
            assert (codes.bits, codes.zero_point) == (8, 128)
            # Clipping a few of the largest may pay; half of the range never does here.
            assert 0.5 <= codes.scale * 127 / float(tensor.abs().max()) <= 1.001


def test_every_layer_s_values_are_seen_and_progress_is_told(checkpoint_of: Any) -> None:
    model, checkpoint = lowered(checkpoint_of())
    graph = static_graph(model, checkpoint.config, TOKENS.shape[1], CAPACITY)
    done: list[int] = []
    found = observe(graph, checkpoint, TOKENS, done.append)
    assert done == [1, 2]
    parts = ("hidden.", "rms_norm", "matmul", "sigmoid", "rotary_embedding", "_symbolic")
    names = {str(value.name) for node in graph.graph for value in node.outputs}
    assert {name for name in names if name.startswith(parts)} <= set(found.ranges)


def test_what_is_not_finite_is_refused(checkpoint_of: Any, tmp_path: Path) -> None:
    source = checkpoint_of(tied=True)
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    for part in ("up", "down"):
        tensors[f"model.layers.1.mlp.{part}_proj.weight"] *= np.float32(1e25)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not finite on the calibration text: repair the checkpoint"):
        observed(tmp_path)


def test_random_weights_have_one_range_for_all() -> None:
    found = assumed(2)
    assert found.ranges["anything"] == (-8.0, 8.0) and set(found.caches) == {"0.key", "0.value", "1.key", "1.value"}
