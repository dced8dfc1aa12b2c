"""A matrix with real minima, folded into more columns, still multiplies as it did: within the bound it states."""

import numpy as np
import pytest
from numpy.typing import NDArray

from megrez.calibration.weights.blocks import BlockQuantized
from megrez.calibration.weights.offsets import fold_offsets, folded_columns

BLOCK = 32


def matrix(bits: int, offsets: NDArray[np.float32], scales: NDArray[np.float32]) -> BlockQuantized:
    n, blocks = offsets.shape
    codes = np.random.default_rng(1).integers(0, 2**bits, (n, blocks * BLOCK)).astype(np.uint8)
    zeros = np.zeros(offsets.shape, np.uint8)
    return BlockQuantized(bits=bits, block=BLOCK, codes=codes, scales=scales, zero_points=zeros, offsets=offsets)


def decoded(quantized: BlockQuantized) -> NDArray[np.float64]:
    """The formula in BlockQuantized's docstring, in float64."""
    n, k = quantized.codes.shape
    w = np.empty((n, k))
    for column in range(k):
        b = column // quantized.block
        zero = 2 ** (quantized.bits - 1) if quantized.zero_points is None else quantized.zero_points[:, b]
        w[:, column] = quantized.scales[:, b].astype(np.float64) * (quantized.codes[:, column] - np.float64(zero))
        w[:, column] += 0 if quantized.offsets is None else quantized.offsets[:, b]
    return w


def widened(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([x, x.reshape(len(x), -1, BLOCK).mean(axis=-1)], axis=1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("blocks", [1, 4, 40])  # 40: the rests fill a whole block of their own and part of another
def test_the_product_is_that_of_the_matrix(bits: int, blocks: int) -> None:
    random = np.random.default_rng(0)
    top = 2**bits - 1
    scales = random.uniform(0.01, 0.2, (6, blocks)).astype(np.float32)
    offsets = (-scales * random.uniform(0, top, scales.shape)).astype(np.float32)  # every block spans zero
    whole = matrix(bits, offsets, scales)
    folded = fold_offsets(whole)
    assert folded.offsets is None
    assert folded.codes.shape[1] == folded_columns(blocks * BLOCK, BLOCK) == blocks * (BLOCK + 1)
    np.testing.assert_array_equal(folded.codes[:, : blocks * BLOCK], whole.codes)
    x = random.normal(size=(5, blocks * BLOCK))
    error = np.abs(widened(x) @ decoded(folded).T - x @ decoded(whole).T)
    # A zero point leaves at most half a step of a minimum. Codes of that are off by half of their own step, which is
    # the largest among 32 neighbours / (2**(bits - 1) - 1); and 32 times a mean of x is a sum.
    groups = np.maximum.reduceat(scales, np.arange(0, blocks, BLOCK), axis=1)
    largest = np.repeat(groups, BLOCK, axis=1)[:, :blocks] / 2
    sums = np.abs(x.reshape(len(x), -1, BLOCK).sum(axis=-1))
    bound = sums @ (largest / (2 ** (bits - 1) - 1) / 2).T
    assert (error <= bound * (1 + 1e-5) + 1e-6).all()
    assert (error > 0).any()


@pytest.mark.parametrize("offset", [-4.0, 3.0])
def test_blocks_that_do_not_span_zero(offset: float) -> None:
    """All weights are negative (the minimum is 40 steps below zero) or positive: the rest is then many steps large."""
    scales = np.full((2, 4), 0.1, np.float32)
    offsets = np.full((2, 4), offset, np.float32) + np.float32(0.03) * np.arange(4, dtype=np.float32)
    whole = matrix(4, offsets, scales)
    folded = fold_offsets(whole)
    assert folded.zero_points is not None
    np.testing.assert_array_equal(folded.zero_points[:, :4], 15 if offset < 0 else 0)
    x = np.random.default_rng(2).normal(size=(3, 128))
    rest = np.abs(offsets + scales * (15 if offset < 0 else 0)).max()
    sums = np.abs(x.reshape(3, -1, BLOCK).sum(axis=-1)).sum(axis=-1, keepdims=True)
    error = np.abs(widened(x) @ decoded(folded).T - x @ decoded(whole).T)
    assert (error <= sums * rest / 14 * (1 + 1e-5)).all()


def test_minima_on_the_grid_need_no_rest() -> None:
    scales = np.full((3, 4), 0.25, np.float32)
    offsets = -scales * np.array([0, 3, 8, 15], np.float32)
    whole = matrix(4, offsets, scales)
    folded = fold_offsets(whole)
    assert folded.zero_points is not None
    np.testing.assert_array_equal(folded.zero_points, [[0, 3, 8, 15, 8]] * 3)
    np.testing.assert_array_equal(decoded(folded)[:, :128], decoded(whole))
    np.testing.assert_array_equal(decoded(folded)[:, 128:], 0)


def test_constant_blocks_of_scale_zero() -> None:
    scales = np.array([[0.0, 0.5]], np.float32)
    offsets = np.array([[0.7, -2.0]], np.float32)
    whole = matrix(4, offsets, scales)
    x = np.random.default_rng(2).normal(size=(3, 64))
    np.testing.assert_allclose(widened(x) @ decoded(fold_offsets(whole)).T, x @ decoded(whole).T, rtol=0, atol=1e-5)


def test_decoding_follows_the_documented_formula() -> None:
    random = np.random.default_rng(5)
    whole = matrix(4, random.normal(size=(3, 2)).astype(np.float32), random.normal(size=(3, 2)).astype(np.float32))
    np.testing.assert_allclose(whole.dequantize(), decoded(whole), rtol=0, atol=1e-5)
