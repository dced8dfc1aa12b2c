"""What TensorRT is given, float16 graph and session together, on ONNX Runtime's CPU kernels: transformers' logits."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from megrez.engines.tensorrt.device import Array
from megrez.engines.tensorrt.numpy_device import Engine, NumpyDevice
from megrez.engines.tensorrt.session import PlanShape, TensorRtSession
from tests.engine_graphs import CAPACITY, SHAPE, engine_graph
from tests.graphs import IDS, ragged
from tests.reference import logits

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "mistral-window": {"family": "mistral", "sliding_window": 5, "tied": True},
    "qwen2": {"family": "qwen2", "tied": True},
    "qwen3-windows": {"family": "qwen3", "sliding_window": 5, "biases": True, "tied": True},
}
# Of float16 through two layers; facts of such graphs at Megrez's shape say 8e-4 a product.
TOLERANCE = 4e-3


def on_onnxruntime(model: ir.Model) -> Engine:
    """An engine that runs the graph as it is; caches are copied back, which TensorRT does in place."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]

    def run(ids: Array, starts: Array, rows: Array, caches: dict[str, Array], found: Array) -> None:
        feeds = {"input_ids": ids, "write_indices": starts, "logits_index": rows}
        past = {f"past_key_values.{name}": cache for name, cache in caches.items()}
        outputs = dict(zip(names, session.run(None, feeds | past), strict=True))
        found[...] = outputs["logits"]
        for name, cache in caches.items():
            cache[...] = outputs[f"present.{name}"]

    return run


def opened(folder: Path, model: ir.Model, slots: int) -> TensorRtSession:
    """With rubbish in the caches: what is not written must not be read."""
    caches = [value for value in model.graph.inputs if str(value.name).endswith(".key")]
    _, heads, _, head_dim = (0 if isinstance(dim, ir.SymbolicDim) else int(dim) for dim in caches[0].shape or ())
    shape = PlanShape(
        slots=2,
        chunk=5,
        rows=6,
        layers=len(caches),
        kv_heads=heads,
        capacity=CAPACITY,
        head_dim=head_dim,
        vocab_size=320,
    )
    device = NumpyDevice(shape=shape, engine=on_onnxruntime(model))
    session = TensorRtSession(device, shape, slots=slots)
    for seed, buffer in enumerate(device._buffers.values()):
        if buffer.nbytes == shape.cache_bytes(slots):
            buffer.view(np.float16)[:] = np.random.default_rng(seed).normal(0, 30, buffer.nbytes // 2)
    return session


@pytest.mark.parametrize("name", FAMILIES)
def test_ragged_chunks_agree_with_transformers(checkpoint_of: Any, name: str) -> None:
    folder = checkpoint_of(**FAMILIES[name])
    session = opened(folder, engine_graph(folder, "trt-fp16"), slots=2)

    def step(tokens: Any, lengths: Any, rows: Any) -> Any:
        return session.step(np.array(tokens), np.array(lengths, np.int32), np.array(rows, np.int64))

    for row, ids in zip(ragged(step), IDS, strict=True):
        expected = logits(folder, ids[: len(row)])
        np.testing.assert_allclose(row, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())
