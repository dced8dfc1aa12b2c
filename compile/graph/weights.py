"""Lazy weights: every initializer is a tensor that reads the checkpoint only when it is written.

Knows the initializer names of the canonical graph and the checkpoint; knows no file format and no engine.
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

# Key in an initializer's `meta`: its checkpoint tensors, stacked along their first axis (out_features).
SOURCES = "megrez.sources"
PROJECTIONS = ("_proj.weight", "lm_head.weight")


def bind(model: ir.Model, checkpoint: Checkpoint, context: int) -> None:
    """Make every weight of the canonical graph a lazy tensor; nothing is read yet."""
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
    """The checkpoint matrix that a MatMul multiplies by, directly or through a tied embedding's Transpose."""
    if node.op_type != "MatMul":
        return None
    value = operand(node, 1)
    transpose = producer(value, "Transpose")
    value = value if transpose is None else operand(transpose, 0)
    return value if SOURCES in value.meta else None


def lazy(value: ir.Value, compute: Callable[[], NDArray[np.generic]]) -> ir.LazyTensor:
    """A tensor of the value's type and shape that is computed each time it is read, and never cached."""
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
    """A new initializer, computed by `compute` when it is read."""
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    value.const_value = lazy(value, compute)
    model.graph.initializers.add(value)
    return value
