"""Round-to-nearest: matrices to block-quantised codes from the weights alone; knows no text and no engine's layout."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.weights.blocks import BlockQuantized
from megrez.runtime.errors import CheckpointError
from megrez.runtime.threads import default_threads

Float32 = NDArray[np.float32]
# Weights in one piece of work: its few temporaries take 1 MB each, and numpy holds no lock for long.
CHUNK = 262144
# A block whose steps would be finer is all zeros: their reciprocals would overflow.
FINEST = np.float32(1e-30)
# Ranges tried, as shares of the one from the block's own extremes.
SHRUNK = {
    4: (1.0, 0.96, 0.92),
    8: (128 / 127, 1.0, 0.99),
}


def quantize_rtn(
    weight: Float32,
    *,
    bits: int,
    block: int,
    symmetric: bool,
    positive: bool = False,
    search: bool = True,
    threads: int | None = None,
) -> BlockQuantized:
    """Codes of `weight` [N, K], each the nearest to its weight on its block's grid.

    A block's range is that of its weights and zero; with `search`, the one of a few narrower ranges whose best scale
    leaves the least squared error. A symmetric range reaches the largest magnitude with its longer, negative side, so
    that scales may be negative; with `positive`, none is, nor zero. Raises CheckpointError for a weight that is not
    finite.
    """
    rows, columns = weight.shape
    shape = rows, -(-columns // block)
    codes, scales, zeros = np.empty(weight.shape, np.uint8), np.empty(shape, np.float32), np.empty(shape, np.uint8)
    shares = SHRUNK[bits] if search else (1.0,)
    step = max(1, CHUNK // columns)

    def quantize_rows(start: int) -> None:
        part = slice(start, start + step)
        x = _by_block(weight[part], block)
        if not np.isfinite(x.sum()):
            raise CheckpointError("a matrix to quantise holds a weight that is not finite: repair the checkpoint")
        grids = _symmetric_grids(x, bits, shares, positive) if symmetric else _asymmetric_grids(x, bits, shares)
        scale, zero = _best_grid(x, bits, grids) if search else next(grids)
        if positive:
            scale = np.where(scale > FINEST, scale, np.float32(1))
        code = (_steps(x, scale, zero, bits) + zero).astype(np.uint8)
        codes[part] = code.T.reshape(-1, shape[1] * block)[:, :columns]
        scales[part] = scale.reshape(-1, shape[1])
        zeros[part] = zero.reshape(-1, shape[1])

    with ThreadPoolExecutor(threads or default_threads()) as pool:
        for _ in pool.map(quantize_rows, range(0, rows, step)):
            pass
    return BlockQuantized(bits=bits, block=block, codes=codes, scales=scales, zero_points=None if symmetric else zeros)


def _by_block(rows: Float32, block: int) -> Float32:
    """[rows, K] as [block, rows * blocks], short blocks filled with zeros: reductions over a block then run along rows
    of memory, many blocks at once."""
    short = -rows.shape[1] % block
    if short:
        rows = np.pad(rows, ((0, 0), (0, short)))
    return np.ascontiguousarray(rows.reshape(-1, block).T)


def _symmetric_grids(
    x: Float32, bits: int, shares: tuple[float, ...], positive: bool
) -> Iterator[tuple[Float32, Float32]]:
    half = np.float32(2 ** (bits - 1))
    low, high = x.min(axis=0), x.max(axis=0)
    signed, unsigned = np.where(high > -low, high, low) / -half, np.maximum(high / (half - 1), low / -half)
    scale = unsigned if positive else signed
    zero = np.full_like(scale, half)
    for share in shares:
        yield scale * np.float32(share), zero


def _asymmetric_grids(x: Float32, bits: int, shares: tuple[float, ...]) -> Iterator[tuple[Float32, Float32]]:
    """At every share, the zero point nearest to where the range puts zero, then its two neighbours."""
    top = np.float32(2**bits - 1)
    low, high = np.minimum(x.min(axis=0), 0), np.maximum(x.max(axis=0), 0)
    scale = (high - low) / top
    zero = np.rint(-low * _reciprocal(scale))
    for share in shares:
        for shift in (0, -1, 1):
            yield scale * np.float32(share), np.clip(zero + np.float32(shift), 0, top)


def _best_grid(x: Float32, bits: int, grids: Iterator[tuple[Float32, Float32]]) -> tuple[Float32, Float32]:
    """Per block, the grid with the least squared error once its scale is the best for the codes it gives."""
    best_scale, best_zero = (np.zeros(x.shape[1], np.float32) for _ in range(2))
    least = np.full(x.shape[1], np.inf, np.float32)
    for scale, zero in grids:
        steps = _steps(x, scale, zero, bits)
        power = np.einsum("kb,kb->b", steps, steps)
        fitted = np.divide(np.einsum("kb,kb->b", x, steps), power, out=np.zeros_like(power), where=power > 0)
        steps *= fitted
        steps -= x
        error = np.einsum("kb,kb->b", steps, steps)
        better = error < least
        for best, new in ((best_scale, fitted), (best_zero, zero), (least, error)):
            np.copyto(best, new, where=better)
    return best_scale, best_zero


def _steps(x: Float32, scale: Float32, zero: Float32, bits: int) -> Float32:
    """How many of its block's steps each weight is from zero, rounded, within the codes' range: [block, blocks]."""
    steps = x * _reciprocal(scale)
    np.rint(steps, out=steps)
    np.maximum(steps, -zero, out=steps)
    np.minimum(steps, np.float32(2**bits - 1) - zero, out=steps)
    return steps


def _reciprocal(scale: Float32) -> Float32:
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=np.abs(scale) > FINEST)
