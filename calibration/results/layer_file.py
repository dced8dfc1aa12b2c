"""Rounded matrices and changed tensors in a safetensors file, one file a layer; knows no layer."""

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


def write_layer(path: Path, found: Calibrated) -> None:
    """Write `found`'s arrays under a temporary name, then give them theirs; OSError where they find no room."""
    arrays: dict[str, NDArray[np.generic]] = dict(found.tensors)
    formats = {}
    for name, matrix in found.matrices.items():
        assert matrix.offsets is None
        arrays[f"{name}.codes"] = _halved(matrix.codes) if matrix.bits == 4 else matrix.codes
        arrays[f"{name}.scales"] = matrix.scales
        if matrix.zero_points is not None:
            arrays[f"{name}.zero_points"] = matrix.zero_points
        formats[name] = dataclasses.asdict(format_of(matrix)) | {"columns": matrix.codes.shape[1]}
    temporary = path.with_suffix(".partial")
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    try:
        save_file(whole, temporary, {"formats": json.dumps(formats)})
    except SafetensorError as error:  # which says of a full disk what an OSError would
        raise OSError(errno.EIO, str(error), str(path)) from error
    temporary.replace(path)


class LayerFile:
    """What `write_layer` wrote; every array is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            formats = json.loads((file.metadata() or {}).get("formats", "{}"))
        self._columns = {name: form.pop("columns") for name, form in formats.items()}
        self.formats = {name: BlockFormat(**form) for name, form in formats.items()}
        parts = {f"{name}.{part}" for name in formats for part in ("codes", "scales", "zero_points")}
        self.tensors = names - parts

    def tensor(self, name: str) -> NDArray[np.float32]:
        with safe_open(self._path, framework="numpy") as file:
            array: NDArray[np.float32] = file.get_tensor(name)
        return array

    def matrix(self, name: str) -> BlockQuantized:
        form = self.formats[name]
        with safe_open(self._path, framework="numpy") as file:
            codes = file.get_tensor(f"{name}.codes")
            zeros = file.get_tensor(f"{name}.zero_points") if form.zero_points else None
            scales = file.get_tensor(f"{name}.scales")
        return BlockQuantized(
            bits=form.bits,
            block=form.block,
            codes=_whole(codes, self._columns[name]) if form.bits == 4 else codes,
            scales=scales,
            zero_points=zeros,
            floating=form.floating,
        )


def format_of(matrix: BlockQuantized) -> BlockFormat:
    return BlockFormat(
        bits=matrix.bits,
        block=matrix.block,
        zero_points=matrix.zero_points is not None,
        offsets=matrix.offsets is not None,
        floating=matrix.floating,
    )


def _halved(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two 4-bit codes to a byte, the earlier in the low half."""
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    halved: NDArray[np.uint8] = even[:, ::2] | (even[:, 1::2] << np.uint8(4))
    return halved


def _whole(halved: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    codes = np.empty((len(halved), 2 * halved.shape[1]), np.uint8)
    codes[:, ::2], codes[:, 1::2] = halved & np.uint8(15), halved >> np.uint8(4)
    return np.ascontiguousarray(codes[:, :columns])
