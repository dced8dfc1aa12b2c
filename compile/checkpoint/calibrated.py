"""A checkpoint after calibration: quantised matrices in blocks, smoothed tensors; knows no graph."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.reference.decoder import GROUPS, LM_HEAD_GROUP
from megrez.calibration.results.layer_file import LayerFile
from megrez.calibration.results.record import Record
from megrez.calibration.weights.blocks import BlockFormat, BlockQuantized
from megrez.compile.checkpoint.derived import DerivedCheckpoint
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.graph.precision import LM_HEAD_TABLES

GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}


class CalibratedCheckpoint(DerivedCheckpoint):
    """The Checkpoint `original`, its tensors replaced by those of `record`, whose files are under `folder`."""

    def __init__(self, original: Checkpoint, record: Record, folder: Path) -> None:
        super().__init__(original)
        self.record = record
        self._matrices: dict[str, LayerFile] = {}
        self._tensors: dict[str, LayerFile] = {}
        for file in record.files:
            layer = LayerFile(folder / file.path)
            self._matrices |= dict.fromkeys(layer.formats, layer)
            self._tensors |= dict.fromkeys(layer.tensors, layer)

    def read(self, name: str) -> NDArray[np.float32]:
        """See the protocol; a quantised matrix is read unquantised: a tied embedding is looked up in full precision."""
        return self._tensors[name].tensor(name) if name in self._tensors else self.original.read(name)

    def block_format(self, name: str) -> BlockFormat | None:
        if name in self._matrices:
            return self._matrices[name].formats[name]
        return None if name in self._tensors else self.original.block_format(name)

    def blocks(self, name: str) -> BlockQuantized | None:
        if name in self._matrices:
            return self._matrices[name].matrix(name)
        return None if name in self._tensors else self.original.blocks(name)

    def input_scale(self, name: str) -> float | None:
        """The static scale of the input of the matrix `name`."""
        group = self.record.groups.get(_group(name))
        return None if group is None else group.input_scale


def _group(name: str) -> str:
    """ "model.layers.3.qkv" for "model.layers.3.self_attn.k_proj.weight"."""
    if name in LM_HEAD_TABLES:
        return LM_HEAD_GROUP
    stem = name.removesuffix(".weight")
    for short, group in GROUP_OF.items():
        if stem.endswith(f".{short}"):
            return stem.removesuffix(short) + group
    return stem
