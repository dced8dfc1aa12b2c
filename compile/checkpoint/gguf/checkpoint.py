"""A .gguf file as a Checkpoint, its tensors under Hugging Face names; does not map the file."""

import math
import re
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.weights.blocks import BlockFormat, BlockQuantized
from megrez.compile.checkpoint.faults import raise_faults, shape_faults
from megrez.compile.checkpoint.fingerprint import fingerprint_of
from megrez.compile.checkpoint.floats import read_floats, refuse_non_finite
from megrez.compile.checkpoint.gguf.blocks import FORMATS, unpack_blocks
from megrez.compile.checkpoint.gguf.config import read_gguf_config
from megrez.compile.checkpoint.gguf.file import GgufTensor, read_header
from megrez.compile.checkpoint.gguf.metadata import check_metadata
from megrez.compile.checkpoint.gguf.names import ROPE_FACTORS, huggingface_name, row_order
from megrez.compile.checkpoint.gguf.tokenizer import read_gguf_text
from megrez.compile.checkpoint.gguf.types import FLOATS, can_dequantize, dequantize
from megrez.compile.checkpoint.protocol import TextAssets
from megrez.compile.checkpoint.tensors import expected_tensors
from megrez.runtime.errors import CheckpointError

PIECE = 1 << 20  # values dequantised at a time
# Unknown tensors that would change the decoder; all others are buffers.
LAYER_PART = re.compile(r"blk\.(\d+)\..*(\.bias|norm\.weight|sinks\.weight|scale)")
AROUND_THE_LAYERS = ("token_", "position_", "output", "rope_")
REMEDY = "take another .gguf file of the model, or its safetensors checkpoint"


class GgufCheckpoint:
    """The Checkpoint in the file `path`. `source` is what the manifest calls it."""

    def __init__(self, path: Path, *, source: str) -> None:
        self._path = path
        self.source = source
        self._header = read_header(path)
        check_metadata(self._header.metadata, source=source, remedy=REMEDY)
        self.config = read_gguf_config(self._header, self._factors, source=source)
        named = {huggingface_name(name, self.config): tensor for name, tensor in self._header.tensors.items()}
        self._tensors = {name: tensor for name, tensor in named.items() if name is not None}

    @cached_property
    def text(self) -> TextAssets | None:
        return read_gguf_text(self._header.metadata, vocab_size=self.config.vocab_size, source=self.source)

    def check(self) -> None:
        """See the protocol; reads only the header."""
        faults = [f"{name} is an unknown tensor" for name in self._header.tensors if self._changes_the_model(name)]
        faults += shape_faults(self.config, {name: tensor.shape for name, tensor in self._tensors.items()})
        needed = [self._tensors[name] for name in expected_tensors(self.config) if name in self._tensors]
        first = {tensor.kind: tensor.name for tensor in reversed(needed)}
        faults += [
            f"{kind}, which {name} is stored as, cannot be read"
            for kind, name in sorted(first.items())
            if not can_dequantize(kind)
        ]
        factors = self._header.tensors.get(ROPE_FACTORS)
        if factors is not None and factors.shape != (self.config.head_dim // 2,):
            faults.append(f"{ROPE_FACTORS} is {list(factors.shape)}, not [head_dim / 2]")
        raise_faults(self.source, faults, REMEDY)
        _ = self.text

    def fingerprint(self) -> str:
        return fingerprint_of(self.config, [self._path])

    def read(self, name: str) -> NDArray[np.float32]:
        values = self._read_stored(self._stored(name))
        order = row_order(name, self.config)
        return values if order is None else values[order]

    def block_format(self, name: str) -> BlockFormat | None:
        tensor = self._stored(name)
        return FORMATS.get(tensor.kind) if len(tensor.shape) == 2 else None

    def blocks(self, name: str) -> BlockQuantized | None:
        """For Q4_0, Q4_1 and Q8_0; `read` dequantises the others."""
        tensor = self._stored(name)
        if self.block_format(name) is None:
            return None
        raw = self._read_raw(tensor, 0, tensor.shape[0])
        order = row_order(name, self.config)
        found = unpack_blocks(raw if order is None else raw[order], tensor.kind)
        for values in (found.scales, found.offsets):
            if values is not None:
                refuse_non_finite(values, tensor=name, path=self._path)
        return found

    def _changes_the_model(self, name: str) -> bool:
        """Whether an unknown tensor is one that the decoder would have to use."""
        if huggingface_name(name, self.config) is not None or name == ROPE_FACTORS:
            return False
        layer = LAYER_PART.fullmatch(name)
        inside = layer is not None and int(layer[1]) < self.config.num_hidden_layers
        return inside or name.startswith(AROUND_THE_LAYERS)

    def _stored(self, name: str) -> GgufTensor:
        if name not in self._tensors:
            raise CheckpointError(f"{self.source} has no tensor {name}: {REMEDY}")
        return self._tensors[name]

    def _factors(self, name: str) -> NDArray[np.float32]:
        tensor = self._header.tensors[name]
        if not math.prod(tensor.shape):
            raise CheckpointError(f"{name} in {self.source} is empty: {REMEDY}")
        return self._read_stored(tensor).reshape(-1)

    def _read_stored(self, tensor: GgufTensor) -> NDArray[np.float32]:
        if tensor.kind in FLOATS:
            count = math.prod(tensor.shape)
            values = read_floats(self._path, tensor=tensor.name, dtype=tensor.kind, start=tensor.start, count=count)
            return values.reshape(tensor.shape)
        if not can_dequantize(tensor.kind):
            raise CheckpointError(f"{tensor.name} in {self.source} is {tensor.kind}, which cannot be read: {REMEDY}")
        rows, columns = math.prod(tensor.shape[:-1]), tensor.shape[-1]
        values = np.empty((rows, columns), np.float32)
        step = max(PIECE // columns, 1)
        for at in range(0, rows, step):
            piece = values[at : at + step]
            piece[:] = dequantize(self._read_raw(tensor, at, at + len(piece)), tensor.kind)
            refuse_non_finite(piece, tensor=tensor.name, path=self._path)
        return values.reshape(tensor.shape)

    def _read_raw(self, tensor: GgufTensor, start: int, stop: int) -> NDArray[np.uint8]:
        """Stored rows [start, stop): uint8 [stop - start, bytes of a row]."""
        row = tensor.size // math.prod(tensor.shape[:-1])
        raw = np.fromfile(self._path, np.uint8, (stop - start) * row, offset=tensor.start + start * row)
        return raw.reshape(stop - start, row)
