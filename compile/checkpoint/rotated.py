"""A checkpoint after Hadamard rotation of its residual stream, with the same logits; knows no graph.

4-bit quantisation loses least where a block's weights have similar magnitudes. An orthogonal matrix R, folded into the
weights that read and write the residual stream, spreads outliers over all channels at no cost at run time; so does one
per head between v_proj and o_proj. RMSNorm commutes with R once its weights are folded into the next projections.
Source: Ashkboos et al., QuaRot (arXiv 2404.00456), its offline part.
"""

import dataclasses
import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.parallel import in_parts
from megrez.calibration.reference.decoder import GROUPS, NORMS
from megrez.calibration.reference.model import EMBED_TOKENS, FINAL_NORM, LM_HEAD
from megrez.calibration.weights.blocks import BlockFormat, BlockQuantized
from megrez.compile.checkpoint.derived import DerivedCheckpoint
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.checkpoint.tensors import expected_tensors
from megrez.compile.families.config import ModelConfig
from megrez.engines.targets import Target

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
NORM_OF = {name: norm for group, norm in NORMS.items() for name in GROUPS[group]}
NORM_WEIGHTS = (FINAL_NORM, *(f"{norm}.weight" for norm in NORMS.values()))
# The largest Hadamard matrix that is a factor of a rotation.
LARGEST_FACTOR = 64
# Weights that a thread rotates at a time: temporaries of 1 MB.
TILE = 1 << 18
# Fixed: other signs would change every bundle of a rotated target.
SIGNS_LABEL = "megrez Hadamard rotation"


def rotate_for(checkpoint: Checkpoint, target: Target) -> Checkpoint:
    """`checkpoint`, rotated where `target` is and the checkpoint has no quantised blocks to keep."""
    if not target.rotated or any(checkpoint.block_format(name) for name in expected_tensors(checkpoint.config)):
        return checkpoint
    return RotatedCheckpoint(checkpoint)


class RotatedCheckpoint(DerivedCheckpoint):
    """The Checkpoint `original`, rotated; its LM head is untied: the final norm's weights are folded into it."""

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
        if name == LM_HEAD:
            tied = self.original.config.tie_word_embeddings
            return self._rotate_input(self.original.read(EMBED_TOKENS if tied else name), FINAL_NORM)
        found = self.original.read(name)
        if name == EMBED_TOKENS:
            return rotate(found)
        *lead, block, linear, kind = name.split(".")
        prefix, projection = "".join(f"{part}." for part in lead), f"{block}.{linear}"
        if kind == "weight" and projection in NORM_OF:
            found = self._rotate_input(found, f"{prefix}{NORM_OF[projection]}.weight")
        if projection == "self_attn.v_proj":
            found = _rotate_rows(found, self.config.head_dim)
        if projection == "self_attn.o_proj" and kind == "weight":
            found = rotate(found.reshape(-1, self.config.head_dim)).reshape(found.shape)
        if projection in ("self_attn.o_proj", "mlp.down_proj"):
            found = _rotate_rows(found, self.config.hidden_size)
        return found

    def _rotate_input(self, weight: Float32, norm: str) -> Float32:
        """`weight` [N, K] for rotated inputs, with the weights of the norm before it folded in."""
        return rotate(weight, self.original.read(norm))


def rotate(x: Float32, scale: Float32 | None = None) -> Float32:
    """x [rows, n], overwritten with (x * scale) @ R for scale [n]: R [n, n] is orthogonal, and depends on n alone.

    R is a diagonal of random signs times a Kronecker product of Hadamard matrices, with a discrete cosine transform for
    the odd part of n.
    """
    rows, n = x.shape
    signs, factors = random_signs(n), _factors(n)
    scale = signs if scale is None else scale * signs

    def rotate_rows(part: slice) -> None:
        x[part] = _multiply(factors, x[part] * scale)

    in_parts(rows, max(1, TILE // n), rotate_rows)
    return x


def random_signs(n: int) -> Float32:
    """+1 or -1 [n], the same on every machine and with every version of numpy.

    The bits, most significant first, of SHA-256 of SIGNS_LABEL, n and a counter from 0, in ASCII with spaces between; a
    set bit is -1.
    """
    digests = (hashlib.sha256(f"{SIGNS_LABEL} {n} {counter}".encode()).digest() for counter in range(-(-n // 256)))
    bits = np.unpackbits(np.frombuffer(b"".join(digests), np.uint8))[:n]
    return np.float32(1) - np.float32(2) * bits


def _rotate_rows(x: Float32, width: int) -> Float32:
    """x [N, K] or [N], overwritten with each group of `width` rows multiplied by R transposed."""
    groups, factors = x.reshape(len(x) // width, width, -1), _factors(width)
    signs = random_signs(width)[:, None]

    def rotate_columns(part: slice) -> None:
        columns = groups[..., part] * signs
        groups[..., part] = _multiply(factors, columns).reshape(columns.shape)

    in_parts(groups.shape[2], max(1, TILE // len(x)), rotate_columns)
    return groups.reshape(x.shape)


def _multiply(factors: list[Float32], x: Float32) -> Float32:
    """The Kronecker product of `factors`, transposed, times vectors: x [rows, n], or matrices: x [groups, n, K]."""
    shape, after = x.shape, x.size // len(x)
    for factor in factors:
        size = len(factor)
        after //= size
        x = x.reshape(-1, size) @ factor if after == 1 else factor.T @ x.reshape(-1, size, after)
    return x.reshape(shape)


def _factors(n: int) -> list[Float32]:
    return [_factor(size).astype(np.float32) for size in _sizes(n)]


def _sizes(n: int) -> list[int]:
    """Factors of n no larger than LARGEST_FACTOR, but for its odd part, which is in the first. Few are fastest."""
    power = n & -n
    odd = n // power
    sizes: list[int] = []
    while power > 1:
        sizes.insert(0, min(power, LARGEST_FACTOR))
        power //= sizes[0]
    if odd > 1 and sizes and odd * sizes[0] <= LARGEST_FACTOR:
        sizes[0] *= odd
    elif odd > 1:
        sizes.insert(0, odd)
    return sizes


def _factor(n: int) -> Float64:
    """An orthogonal [n, n]: the DCT-II of n's odd part, in a Kronecker product with a Hadamard matrix."""
    power = n & -n
    matrix: Float64 = _cosines(n // power)
    while len(matrix) < n:
        matrix = np.asarray(np.kron(matrix, [[1, 1], [1, -1]]) / math.sqrt(2), np.float64)
    return matrix


def _cosines(n: int) -> Float64:
    """The matrix of the DCT-II, [n, n]."""
    angles = np.outer(np.arange(n) + 0.5, np.arange(n)) * (math.pi / n)
    matrix: Float64 = np.cos(angles) * math.sqrt(2 / n)
    matrix[:, 0] /= math.sqrt(2)
    return matrix
