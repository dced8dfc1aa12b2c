"""Write an ONNX Runtime model: the graph in one file, its weights streamed into another; knows no checkpoint.

At any moment one weight is in memory: the one being written.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
# Below this a tensor stays inside the graph, where ONNX Runtime's shape inference can see it.
EMBEDDED_BYTES = 1024
# External data is mapped into memory: every tensor starts on a page.
PAGE = 4096

Progress = Callable[[int], None]


def build(model: ir.Model, folder: Path, *, progress: Progress = lambda written: None) -> list[Path]:
    """Write `model` into `folder` and return the files; its initializers are replaced by references to them.

    `progress` is told of every tensor's bytes once they are written.
    """
    weights = list(_external(model))
    with (folder / DATA_FILE).open("wb") as data:
        for value, tensor in weights:
            value.const_value = _append(data, tensor, folder)
            progress(tensor.nbytes)
    ir.save(model, folder / MODEL_FILE)
    return [folder / MODEL_FILE, folder / DATA_FILE]


def data_bytes(model: ir.Model) -> int:
    """How large the weights' file will be, from shapes alone."""
    return sum(-(-tensor.nbytes // PAGE) * PAGE for _, tensor in _external(model))


def _external(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None, f"{value.name} has no recipe"
        if tensor.nbytes > EMBEDDED_BYTES:
            yield value, tensor


def _append(data: BinaryIO, tensor: ir.TensorProtocol, folder: Path) -> ir.ExternalTensor:
    array, shape = tensor.numpy(), tensor.shape.numpy()
    assert array.shape == shape and array.dtype == tensor.dtype.numpy(), f"{tensor.name} is {array.dtype} {array.shape}"
    offset = -(-data.tell() // PAGE) * PAGE
    data.seek(offset)
    data.write(array.data)
    return ir.ExternalTensor(
        DATA_FILE, offset, array.nbytes, tensor.dtype, shape=ir.Shape(shape), name=tensor.name or "", base_dir=folder
    )
