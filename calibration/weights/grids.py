"""The grid that a weight's numbers are rounded to: scales and zero points that calibration's activations prefer.

Knows a matrix and how loud each of its inputs is; knows no text and no engine's layout.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.activations.data_types import FLOATS, block_unit
from megrez.calibration.weights.blocks import BlockQuantized
from megrez.engines.weight_formats import WeightFormat
from megrez.runtime.threads import default_threads

Float32 = NDArray[np.float32]
# Weights in one piece of work: a few temporaries of 1 MB each.
CHUNK = 1 << 18
FINEST = np.float32(1e-30)
# Ranges tried, as shares of the one that clips nothing. E4M3 repeats itself at every power of two.
SHARES = {4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7), 8: (1.0, 0.95, 0.9, 0.85, 0.8)}
OCTAVE = tuple(2.0 ** (-step / 8) for step in range(8))
# Steps of a block's scale within its channel's, as Hexagon NPUs hold them: 4 bits.
NESTED = 16
# E2M1's scales are E4M3 numbers themselves: neighbours of the full range, above it too, where 4 and 6 lie far apart.
SHARES_E2M1 = (1.0, 1.125, 1.25, 1.375, 1.5, 0.9, 0.8)


def fit_grid(weight: Float32, form: WeightFormat, importance: Float32 | None = None) -> BlockQuantized:
    """Of a few ranges for each block of `weight` [N, K], the one that leaves the least squared error.

    importance: [K], the mean square of each input, weighs the errors; without it only the full range is taken. Scales
    are positive. Codes are the nearest on the grid.
    """
    rows, columns = weight.shape
    block = form.block or columns
    shape = rows, -(-columns // block)
    codes, scales = np.empty(weight.shape, np.uint8), np.empty(shape, np.float32)
    zeros = np.empty(shape, np.float32)
    loud = None if importance is None else _blocks(importance[None], block)[0]
    unit = _unit(weight, form)
    step = max(1, CHUNK // columns)

    def fit_rows(start: int) -> None:
        part = slice(start, start + step)
        x = _blocks(weight[part], block)  # [rows, blocks, block]
        scale, zero = _best(x, form, loud, unit)
        if form.nested:
            scale = _nested(scale, (x != 0).any(axis=2))
        codes[part] = _codes(x, scale, zero, form).reshape(len(x), -1)[:, :columns]
        scales[part], zeros[part] = scale, zero

    with ThreadPoolExecutor(default_threads()) as pool:
        for _ in pool.map(fit_rows, range(0, rows, step)):
            pass
    return BlockQuantized(
        bits=form.bits,
        block=block,
        codes=codes,
        scales=scales,
        zero_points=None if form.symmetric else zeros.astype(np.uint8),
        floating=form.floating,
    )


def _unit(weight: Float32, form: WeightFormat) -> np.float32 | None:
    """Of NVFP4's scales, None for scales that may be any number."""
    if not form.floating or form.bits != 4:
        return None
    return block_unit(float(np.abs(weight).max(initial=0)) * max(SHARES_E2M1) / FLOATS[4].largest)


def _best(x: Float32, form: WeightFormat, loud: Float32 | None, unit: np.float32 | None) -> tuple[Float32, Float32]:
    grids = _grids(x, form, unit)
    scale, zero = next(grids)
    if loud is None:
        return scale, zero
    best_scale, best_zero, least = scale, zero, _error(x, scale, zero, form, loud)
    for scale, zero in grids:
        error = _error(x, scale, zero, form, loud)
        better = error < least
        best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero, best_zero)
        least = np.minimum(error, least)
    return best_scale, best_zero


def _grids(x: Float32, form: WeightFormat, unit: np.float32 | None) -> Iterator[tuple[Float32, Float32]]:
    """Scales and zero points [rows, blocks], the range that clips nothing first."""
    if unit is not None:
        full = np.abs(x).max(axis=2) / np.float32(FLOATS[4].largest)
        for share in SHARES_E2M1:
            scale = FLOATS[8].round(full * np.float32(share) / unit) * unit
            yield np.where(scale > 0, scale, unit), np.zeros_like(full)
        return
    if form.symmetric:
        middle = 2.0 ** (form.bits - 1)
        largest = np.float32(FLOATS[8].largest if form.floating else middle - 1)
        full = np.abs(x).max(axis=2) / largest
        zero = np.full_like(full, 0.0 if form.floating else middle)
        for share in OCTAVE if form.floating else SHARES[form.bits]:
            yield _usable(full * np.float32(share)), zero
        return
    top = np.float32(2**form.bits - 1)
    low, high = np.minimum(x.min(axis=2), 0), np.maximum(x.max(axis=2), 0)
    for share in SHARES[form.bits]:
        scale = _usable((high - low) * np.float32(share) / top)
        zero = np.rint(-low * np.float32(share) / scale)
        for shift in (0, -1, 1):
            yield scale, np.clip(zero + np.float32(shift), 0, top)


def _nested(scale: Float32, filled: NDArray[np.bool_]) -> Float32:
    """Scales [rows, blocks] as the nearest of 1 .. NESTED times a sixteenth of their row's largest.

    filled: which blocks are not zeros throughout; the scale of those says nothing, and the others' decides.
    """
    largest = np.where(filled, scale, 0).max(axis=1, keepdims=True)
    unit = _usable(largest / np.float32(NESTED))
    nearest: Float32 = np.clip(np.rint(scale / unit), 1, NESTED) * unit
    return nearest


def _usable(scale: Float32) -> Float32:
    """Blocks of zeros, and of less than any number can show, get the scale 1."""
    return np.where(scale > FINEST, scale, np.float32(1))


def _codes(x: Float32, scale: Float32, zero: Float32, form: WeightFormat) -> NDArray[np.uint8]:
    if form.floating:
        return FLOATS[form.bits].encode(x / scale[..., None])
    top = np.float32(2**form.bits - 1)
    steps = np.rint(x / scale[..., None])
    steps += zero[..., None]
    np.clip(steps, 0, top, out=steps)
    codes: NDArray[np.uint8] = steps.astype(np.uint8)
    return codes


def _error(x: Float32, scale: Float32, zero: Float32, form: WeightFormat, loud: Float32) -> Float32:
    """Of each block: sum over its columns of loud * (rounded - x)^2."""
    steps = x / scale[..., None]
    if form.floating:
        steps = FLOATS[form.bits].round(steps)
    else:
        np.rint(steps, out=steps)
        np.clip(steps, -zero[..., None], np.float32(2**form.bits - 1) - zero[..., None], out=steps)
    steps *= scale[..., None]
    steps -= x
    steps *= steps
    error: Float32 = np.einsum("rbk,bk->rb", steps, loud)
    return error


def _blocks(rows: Float32, block: int) -> Float32:
    """[rows, K] as [rows, blocks, block], a last, short block filled with zeros."""
    short = -rows.shape[1] % block
    if short:
        rows = np.pad(rows, ((0, 0), (0, short)))
    return rows.reshape(len(rows), -1, block)
