"""A layer's quantised matrices and changed tensors as a safetensors file; knows no algorithm."""

import dataclasses
import errno
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from megrez.calibration.recipe import Calibrated
from megrez.calibration.weights.blocks import BlockFormat, BlockQuantized


def write_layer(path: Path, calibrated: Calibrated) -> None:
    """Write the arrays of `calibrated` under a temporary name, then rename; raises OSError where that fails."""
    arrays: dict[str, NDArray[np.generic]] = dict(calibrated.tensors)
    formats = {}
    for name, matrix in calibrated.matrices.items():
        assert matrix.offsets is None
        arrays[f"{name}.codes"] = _packed(matrix.codes) if matrix.bits == 4 else matrix.codes
        arrays[f"{name}.scales"] = matrix.scales
        if matrix.zero_points is not None:
            arrays[f"{name}.zero_points"] = matrix.zero_points
        formats[name] = dataclasses.asdict(format_of(matrix)) | {"columns": matrix.codes.shape[1]}
    temporary = path.with_suffix(".partial")
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    try:
        save_file(contiguous, temporary, {"formats": json.dumps(formats)})
    except SafetensorError as error:  # for example a full disk
        raise OSError(errno.EIO, str(error), str(path)) from error
    temporary.replace(path)


class LayerFile:
    """Reads a file of `write_layer`, each array when it is needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            formats = json.loads((file.metadata() or {}).get("formats", "{}"))
        self._columns = {name: stored.pop("columns") for name, stored in formats.items()}
        self.formats = {name: BlockFormat(**stored) for name, stored in formats.items()}
        parts = {f"{name}.{part}" for name in formats for part in ("codes", "scales", "zero_points")}
        self.tensors = names - parts

    def tensor(self, name: str) -> NDArray[np.float32]:
        with safe_open(self._path, framework="numpy") as file:
            array: NDArray[np.float32] = file.get_tensor(name)
        return array

    def matrix(self, name: str) -> BlockQuantized:
        block_format = self.formats[name]
        with safe_open(self._path, framework="numpy") as file:
            codes = file.get_tensor(f"{name}.codes")
            zeros = file.get_tensor(f"{name}.zero_points") if block_format.zero_points else None
            scales = file.get_tensor(f"{name}.scales")
        return BlockQuantized(
            bits=block_format.bits,
            block=block_format.block,
            codes=_unpacked(codes, self._columns[name]) if block_format.bits == 4 else codes,
            scales=scales,
            zero_points=zeros,
            floating=block_format.floating,
        )


def format_of(matrix: BlockQuantized) -> BlockFormat:
    return BlockFormat(
        bits=matrix.bits,
        block=matrix.block,
        zero_points=matrix.zero_points is not None,
        offsets=matrix.offsets is not None,
        floating=matrix.floating,
    )


def _packed(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two 4-bit codes to a byte, the earlier in the low half."""
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    packed: NDArray[np.uint8] = even[:, ::2] | (even[:, 1::2] << np.uint8(4))
    return packed


def _unpacked(packed: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    codes = np.empty((len(packed), 2 * packed.shape[1]), np.uint8)
    codes[:, ::2], codes[:, 1::2] = packed & np.uint8(15), packed >> np.uint8(4)
    return np.ascontiguousarray(codes[:, :columns])
