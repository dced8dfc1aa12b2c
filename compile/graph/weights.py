"""Recipes instead of weights: every initializer is a lazy tensor that reads the checkpoint only when it is written.

Knows the canonical graph's initializer names and the checkpoint's; knows no file format and no engine.
"""

import functools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.families.config import ModelConfig
from megrez.compile.graph.passes.graph import operand, producer
from megrez.compile.graph.rope import rotary_tables

# On an initializer's `meta`: the checkpoint tensors it is made of, stacked along their first axis (out_features).
SOURCES = "megrez.sources"
PROJECTIONS = ("_proj.weight", "lm_head.weight")


def bind(model: ir.Model, checkpoint: Checkpoint, context: int) -> None:
    """Give every weight of the canonical graph its recipe; nothing is read yet."""
    bind_rotary(model, checkpoint.config, context)
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            continue
        value.meta[SOURCES] = (name,)
        transposed = name.endswith(PROJECTIONS)
        value.const_value = lazy(value, functools.partial(_read, checkpoint, name, transposed))


def bind_rotary(model: ir.Model, config: ModelConfig, context: int) -> None:
    for kind, table in zip(("cos", "sin"), rotary_tables(config, context), strict=True):
        value = model.graph.initializers[f"model.rotary_{kind}"]
        value.const_value = ir.tensor(table, name=value.name)


def _read(checkpoint: Checkpoint, name: str, transposed: bool) -> NDArray[np.float32]:
    array = checkpoint.read(name)
    return array.T if transposed else array


def stack(checkpoint: Checkpoint, sources: tuple[str, ...]) -> NDArray[np.float32]:
    """The matrix [out_features, in_features] of one projection, or of several that read the same input."""
    parts = [checkpoint.read(name) for name in sources]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def weight_of(node: ir.Node) -> ir.Value | None:
    """The checkpoint matrix that a MatMul multiplies by, seen through a tied embedding's Transpose."""
    if node.op_type != "MatMul":
        return None
    value = operand(node, 1)
    transpose = producer(value, "Transpose")
    value = value if transpose is None else operand(transpose, 0)
    return value if SOURCES in value.meta else None


def lazy(value: ir.Value, compute: Callable[[], NDArray[np.generic]]) -> ir.LazyTensor:
    """A tensor of the value's type and shape that is computed anew each time it is asked for, and never kept."""
    assert value.dtype is not None and value.shape is not None
    return ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(compute())), dtype=value.dtype, shape=value.shape, name=value.name
    )


def add_lazy(
    model: ir.Model,
    name: str,
    dtype: ir.DataType,
    shape: tuple[int, ...],
    compute: Callable[[], NDArray[np.generic]],
) -> ir.Value:
    """A new initializer with the recipe `compute`."""
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    value.const_value = lazy(value, compute)
    model.graph.initializers.add(value)
    return value
