"""A checkpoint whose residual stream is turned, which leaves the model's answers as they are; knows no graph.

4 bits lose least where a block's weights are of one size. An orthogonal matrix R between the layers, folded into the
weights on both sides, spreads what lies in a few channels over all of them at no cost at run time; so does one per head
between the values and the output projection. Norms stay what they are once their weights have gone into what reads
them. Source: Ashkboos et al., QuaRot (2024), its offline part.
"""

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.reference.decoder import NORMS, POINTS
from megrez.calibration.reference.model import EMBEDDING, FINAL_NORM, HEAD
from megrez.calibration.weights.blocks import BlockFormat, BlockQuantized
from megrez.compile.checkpoint.derived import DerivedCheckpoint
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.checkpoint.tensors import expected_tensors
from megrez.compile.families.config import ModelConfig
from megrez.engines.targets import Target
from megrez.runtime.threads import default_threads

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
NORM_OF = {name: norm for point, norm in NORMS.items() for name in POINTS[point]}
NORM_WEIGHTS = (FINAL_NORM, *(f"{norm}.weight" for norm in NORMS.values()))
# The largest power of two that is one factor of a rotation, and numbers turned at a time.
LARGEST_FACTOR = 64
CHUNK = 1 << 20


def rotate_for(checkpoint: Checkpoint, target: Target) -> Checkpoint:
    """`checkpoint`, turned where `target` asks for it and no blocks of its own would be carried over."""
    if not target.rotated or any(checkpoint.block_format(name) for name in expected_tensors(checkpoint.config)):
        return checkpoint
    return RotatedCheckpoint(checkpoint)


class RotatedCheckpoint(DerivedCheckpoint):
    """The Checkpoint `original`, turned; its lm_head is never tied, since only the embedding has no norm before it."""

    @property
    def config(self) -> ModelConfig:
        return dataclasses.replace(self.original.config, tie_word_embeddings=False)

    def block_format(self, name: str) -> BlockFormat | None:
        return None

    def blocks(self, name: str) -> BlockQuantized | None:
        return None

    def read(self, name: str) -> Float32:
        """See the protocol."""
        if name.endswith(NORM_WEIGHTS):
            return np.ones_like(self.original.read(name))
        if name == HEAD:
            tied = self.original.config.tie_word_embeddings
            return self._input(self.original.read(EMBEDDING if tied else name), FINAL_NORM)
        found = self.original.read(name)
        if name == EMBEDDING:
            return rotate(found)
        *lead, block, linear, kind = name.split(".")
        prefix, projection = "".join(f"{part}." for part in lead), f"{block}.{linear}"
        if kind == "weight" and projection in NORM_OF:
            found = self._input(found, f"{prefix}{NORM_OF[projection]}.weight")
        if projection == "self_attn.v_proj":
            found = _rotate_rows(found, self.config.head_dim)
        if projection == "self_attn.o_proj" and kind == "weight":
            found = rotate(found.reshape(-1, self.config.head_dim)).reshape(found.shape)
        if projection in ("self_attn.o_proj", "mlp.down_proj"):
            found = _rotate_rows(found, self.config.hidden_size)
        return found

    def _input(self, weight: Float32, norm: str) -> Float32:
        return rotate(weight, self.original.read(norm))


def rotate(x: Float32, scale: Float32 | None = None) -> Float32:
    """x [rows, n], overwritten with (x * scale) @ R for scale [n]: R [n, n] is orthogonal, and depends on n alone."""
    rows, n = x.shape
    signs = np.random.default_rng(n).choice(np.array([-1, 1], np.float32), n)
    factors = [_factor(size).astype(np.float32) for size in _sizes(n)]
    scale = signs if scale is None else scale * signs
    step = max(1, CHUNK // n)

    def rotate_part(start: int) -> None:
        part = x[start : start + step] * scale
        for factor in factors:  # the first axis goes last and is turned: after all of them the order is the old one
            size = len(factor)
            moved = part.reshape(len(part), size, n // size).swapaxes(1, 2)
            part = (moved.reshape(-1, size) @ factor).reshape(len(part), n)
        x[start : start + step] = part

    with ThreadPoolExecutor(default_threads()) as pool:
        for _ in pool.map(rotate_part, range(0, rows, step)):
            pass
    return x


def _rotate_rows(x: Float32, width: int) -> Float32:
    """Every `width` rows of x [N, K], or numbers of x [N], by the transpose of their R."""
    groups = x.reshape(len(x) // width, width, -1)
    moved = groups.swapaxes(1, 2)
    turned = rotate(moved.reshape(-1, width)).reshape(moved.shape).swapaxes(1, 2)
    return np.ascontiguousarray(turned).reshape(x.shape)


def _sizes(n: int) -> list[int]:
    """Factors of n: its odd part, and powers of two no larger than LARGEST_FACTOR."""
    power = n & -n
    sizes = [n // power] if n != power else []
    while power > 1:
        sizes.append(min(power, LARGEST_FACTOR))
        power //= sizes[-1]
    return sizes


def _factor(n: int) -> Float64:
    """An orthogonal [n, n]: Hadamard's for a power of two, which is flat, else the discrete cosine transform's."""
    if n & (n - 1) == 0:
        matrix = np.ones((1, 1))
        while len(matrix) < n:
            matrix = np.kron(matrix, np.array([[1.0, 1.0], [1.0, -1.0]]))
        return matrix / math.sqrt(n)
    angles = np.outer(np.arange(n) + 0.5, np.arange(n)) * (math.pi / n)
    matrix = np.cos(angles) * math.sqrt(2 / n)
    matrix[:, 0] /= math.sqrt(2)
    return matrix
