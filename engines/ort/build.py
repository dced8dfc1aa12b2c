"""Write an ONNX Runtime model: the graph in one file, its weights streamed into another; knows no checkpoint.

At any moment one weight is in memory: the one being written.
"""

from collections.abc import Callable
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
    weights = _external(model)
    with (folder / DATA_FILE).open("wb") as data:
        for value in weights:
            value.const_value = _append(data, value, folder)
            progress(value.const_value.nbytes)
    ir.save(model, folder / MODEL_FILE)
    return [folder / MODEL_FILE, *([folder / DATA_FILE] if weights else [])]


def data_bytes(model: ir.Model) -> int:
    """How large the weights' file will be, from shapes alone."""
    return sum(-(-value.const_value.nbytes // PAGE) * PAGE for value in _external(model))


def _external(model: ir.Model) -> list[ir.Value]:
    values = model.graph.initializers.values()
    return [value for value in values if value.const_value.nbytes > EMBEDDED_BYTES]


def _append(data: BinaryIO, value: ir.Value, folder: Path) -> ir.ExternalTensor:
    array = value.const_value.numpy()
    assert array.shape == tuple(value.shape) and array.dtype == value.dtype.numpy(), f"{value.name} is {array.shape}"
    offset = -(-data.tell() // PAGE) * PAGE
    data.seek(offset)
    data.write(array.data)
    return ir.ExternalTensor(
        DATA_FILE, offset, array.nbytes, value.dtype, shape=value.shape, name=value.name, base_dir=folder
    )
