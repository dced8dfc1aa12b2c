"""The last layer computes all positions; its rows are those that transformers gives."""

from typing import Any

import numpy as np
import onnx_ir.passes.common as common

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.graph.passes.all_positions import AllPositions
from tests.graphs import IDS, canonical, op_counts, run
from tests.reference import logits


def test_every_position_has_its_logits(checkpoint_of: Any) -> None:
    folder = checkpoint_of(tied=True)
    model = canonical(open_checkpoint(str(folder)))
    before = op_counts(model)["Gather"]
    assert AllPositions()(model).modified
    common.RemoveUnusedNodesPass()(model)
    assert before - op_counts(model)["Gather"] == 2
    assert "logits_index" not in [value.name for value in model.graph.inputs]
    assert [str(dim) for dim in model.graph.outputs[0].shape or ()] == ["batch", "sequence", "320"]
    caches = {
        f"past_key_values.{i}.{kind}": np.zeros((2, 2, 16, 32), "f4") for i in (0, 1) for kind in ("key", "value")
    }
    feeds = {"input_ids": np.array(IDS), "write_indices": np.zeros(2, np.int64), **caches}
    for row, ids in zip(run(model, feeds)["logits"], IDS, strict=True):
        np.testing.assert_allclose(row, logits(folder, ids), rtol=0, atol=1e-4)
