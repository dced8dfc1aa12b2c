"""Quantised graphs, two rows of different lengths in chunks, with rubbish in unwritten slots: product by product.

Every product is held to float64 with the decoded weights, and what lies between two products, the attention with its
cache above all, to transformers, which is given the graph's own products: so that no rounding that falls the other way
hides what follows it. In float32 as staged, and in float16 as TensorRT builds it.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.graph.dialects import lower
from megrez.compile.graph.passes.half_precision import HalfPrecision
from megrez.compile.graph.passes.static_shapes import StaticShapes
from megrez.engines.targets import find_target
from tests.graphs import IDS, canonical, ragged
from tests.portable import decoded, linear_layers, rounded
from tests.reference import load

CAPACITY = 24
FAMILIES: dict[str, dict[str, Any]] = {
    "llama-biases": {"biases": True},
    "mistral-window": {"family": "mistral", "sliding_window": 5, "tied": True},
    "qwen3": {"family": "qwen3"},
}
# The scale of every rounded input: what norms give here is up to 4, or up to 1 times that.
SCHEMES = {"int8": ("trt-int8", 0.03), "fp8": ("trt-fp8", 0.02), "int4": ("trt-int4", None)}
# Of the largest number: of a product, and of what lies between two products.
TOLERANCES = {"float32": (1e-5, 1e-5), "float16": (2e-3, 4e-3)}
Arrays = dict[str, NDArray[Any]]


def lowered(folder: Path, target: str, scale: float | None, arithmetic: str) -> ir.Model:
    checkpoint, row = open_checkpoint(str(folder)), find_target(target)
    if target == "trt-int4":
        row = row.with_block(32)
    model = canonical(checkpoint, CAPACITY)
    lower(model, checkpoint, row, lambda name: scale)
    if arithmetic == "float16":
        for one in (HalfPrecision(), StaticShapes({"capacity": CAPACITY})):
            one(model)
    return model


def run_ragged(model: ir.Model, shown: list[str], dtype: Any) -> tuple[list[Arrays], list[NDArray[Any]]]:
    """By row: the values `shown` of its tokens, one after another; and the logits of each."""
    proto = ir.to_proto(model)
    known = {output.name for output in proto.graph.output}
    for name in shown:
        if name not in known:
            proto.graph.output.add(name=name)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    rubbish = np.random.default_rng(3).normal(0, 30, (2, 2, CAPACITY, 32)).astype(dtype)
    caches = {f"{layer}.{kind}": rubbish for layer in (0, 1) for kind in ("key", "value")}
    kept: list[dict[str, list[NDArray[Any]]]] = [defaultdict(list), defaultdict(list)]

    def step(tokens: list[list[int]], starts: list[int], logits_index: list[int]) -> Any:
        names = ["logits", *shown, *(f"present.{name}" for name in caches)]
        feeds = {
            "input_ids": np.array(tokens),
            "write_indices": np.array(starts),
            "logits_index": np.array(logits_index),
            **{f"past_key_values.{name}": cache for name, cache in caches.items()},
        }
        found = dict(zip(names, session.run(names, feeds), strict=True))
        caches.update({name: found[f"present.{name}"] for name in caches})
        width = len(tokens[0])
        for name in shown:
            flat = found[name].reshape(-1, found[name].shape[-1])
            if found[name].ndim == 3:  # the last layer goes on with the tokens whose logits are wanted alone
                flat = flat[logits_index]
            for row in range(2):
                kept[row][name].append(flat[[at // width == row for at in logits_index]])
        return found["logits"]

    logits = ragged(step)
    return [{name: np.concatenate(parts).astype(np.float64) for name, parts in row.items()} for row in kept], logits


@pytest.mark.parametrize("arithmetic", TOLERANCES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_chunks_product_by_product(checkpoint_of: Any, family: str, scheme: str, arithmetic: str) -> None:
    folder = checkpoint_of(**FAMILIES[family])
    (target, scale), (of_product, between) = SCHEMES[scheme], TOLERANCES[arithmetic]
    model = lowered(folder, target, scale, arithmetic)
    layers = linear_layers(ir.to_proto(model).graph)
    assert len(layers) == 2 * 4
    shown = sorted({layer[key] for layer in layers for key in ("x", "read", "y")})
    rows, logits = run_ragged(model, shown, np.dtype(arithmetic))
    reference = load(folder)
    weights = reference.state_dict()
    kind, block = find_target(target).input_type, 32 if scheme == "int4" else None
    for ids, values, row_logits in zip(IDS, rows, logits, strict=True):
        for layer in layers:
            x, read, y = (values[layer[key]] for key in ("x", "read", "y"))
            stored = 1.0 if scale is None else float(np.dtype(arithmetic).type(scale))
            ideal = rounded(x.astype(np.float32), stored, kind)
            # On the grid, and no farther than the nearest point but for the width of the arithmetic's own numbers.
            np.testing.assert_allclose(rounded(read.astype(np.float32), stored, kind), read, rtol=1e-3, atol=1e-7)
            assert (np.abs(read - x) <= np.abs(ideal - x) + of_product * np.abs(x) + 1e-6).all()
            expected = read @ decoded(model, layer["stem"], block)
            if layer["bias"]:
                names = [source.replace(".weight", ".bias") for source in layer["sources"]]
                expected += np.concatenate([weights[name].numpy() for name in names])
            assert np.abs(y - expected).max() <= of_product * np.abs(expected).max(), layer["sources"]
        count = len(row_logits)
        told, inputs = forced(reference, layers, values, ids[:count])
        for name, seen in inputs.items():
            layer = next(one for one in layers if name in one["sources"])
            assert np.abs(values[layer["x"]] - seen).max() <= between * np.abs(seen).max(), name
        assert np.abs(row_logits - told).max() <= between * np.abs(told).max()


def forced(
    reference: Any, layers: list[dict[str, Any]], values: Arrays, ids: list[int]
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """transformers' logits, and what its layers read, where they give what the graph's products gave."""
    inputs: dict[str, NDArray[Any]] = {}
    modules = dict(reference.named_modules())
    hooks = []

    def hook(source: str, given: NDArray[Any]) -> Any:
        def replaced(module: Any, arguments: Any, output: Any) -> Any:
            inputs[source] = arguments[0][0].numpy().astype(np.float64)
            return torch.from_numpy(given.astype(np.float32))[None]

        return replaced

    for layer in layers:
        sizes = [len(modules[source.removesuffix(".weight")].weight) for source in layer["sources"]]
        for source, given in zip(
            layer["sources"], np.split(values[layer["y"]], np.cumsum(sizes)[:-1], axis=1), strict=True
        ):
            module = modules[source.removesuffix(".weight")]
            hooks.append(module.register_forward_hook(hook(source, given)))
    try:
        with torch.no_grad():
            found: NDArray[Any] = reference(torch.tensor([ids])).logits[0].numpy()
    finally:
        for one in hooks:
            one.remove()
    assert len(inputs) == 2 * 7
    return found, inputs
