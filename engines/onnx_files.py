"""Writes an ONNX model: the graph to one file, its weights as external data to another; independent of checkpoints.

Only one weight at a time is in memory.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from megrez.engines.ort import MODEL_FILE

DATA_FILE = "{}.data"
# Tensors up to this size are stored in the graph, where ONNX Runtime's shape inference can read them.
EMBEDDED_BYTES = 1024
# External data is memory-mapped: every tensor starts at a page boundary.
PAGE = 4096

Progress = Callable[[int], None]


def write_onnx(
    model: ir.Model, folder: Path, *, file: str = MODEL_FILE, progress: Progress = lambda written: None
) -> None:
    """Write `model` to `folder` as `file` and its external data; its initializers become references to the data.

    Tensors already stored in a file of `folder` stay there. progress: called with the bytes of each tensor written.
    """
    with contextlib.ExitStack() as stack:
        data: BinaryIO | None = None
        for value, tensor in _tensors(model):
            if isinstance(tensor, ir.ExternalTensor) and Path(tensor.base_dir) == folder:
                continue
            if tensor.nbytes <= EMBEDDED_BYTES:
                # Evaluated here: ir.save would wrap errors of the checkpoint in its own.
                value.const_value = ir.Tensor(tensor.numpy(), name=tensor.name)
                continue
            if data is None:
                data = stack.enter_context((folder / DATA_FILE.format(file)).open("wb"))
            value.const_value = _append(data, tensor, folder)
            progress(tensor.nbytes)
    ir.save(model, folder / file)


def data_bytes(model: ir.Model) -> int:
    """The size of the external data in bytes, computed from shapes."""
    sizes = [tensor.nbytes for _, tensor in _tensors(model)]
    return sum(-(-size // PAGE) * PAGE for size in sizes if size > EMBEDDED_BYTES)


def _tensors(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for value in model.graph.initializers.values():
        assert value.const_value is not None, f"{value.name} has no value"
        yield value, value.const_value


def _append(data: BinaryIO, tensor: ir.TensorProtocol, folder: Path) -> ir.ExternalTensor:
    array, shape = tensor.numpy(), tensor.shape.numpy()
    assert array.shape == shape and array.dtype == tensor.dtype.numpy(), f"{tensor.name} is {array.dtype} {array.shape}"
    offset = -(-data.tell() // PAGE) * PAGE
    data.seek(offset)
    data.write(_stored(array, tensor.dtype))
    return ir.ExternalTensor(
        Path(data.name).name,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(shape),
        name=tensor.name or "",
        base_dir=folder,
    )


def _stored(array: NDArray[np.generic], dtype: ir.DataType) -> memoryview | bytes:
    """The bytes of a contiguous array as ONNX stores them: two 4-bit values per byte, where numpy uses a byte each."""
    return ir.Tensor(array).tobytes() if dtype.bitwidth < 8 else array.view(np.uint8).data
