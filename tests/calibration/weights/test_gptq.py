"""Codes beside GPTQ as its paper has it: the inverse Hessian's Cholesky factor, column by column, in float64."""

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from megrez.calibration.weights import cholesky, gptq
from megrez.calibration.weights.blocks import BlockQuantized
from megrez.calibration.weights.gptq import Gptq
from megrez.calibration.weights.nearest import quantize_nearest
from megrez.calibration.weights.ranges import AbsMax
from megrez.engines.weight_formats import WeightFormat

FORMATS = {
    "int4": WeightFormat(bits=4, block=32, symmetric=True),
    "int4 with zero points": WeightFormat(bits=4, block=32, symmetric=False),
    "int8 in blocks": WeightFormat(bits=8, block=32, symmetric=True),
    "int8 per channel": WeightFormat(bits=8, block=None, symmetric=True),
    "fp8 per channel": WeightFormat(bits=8, block=None, symmetric=True, floating=True),
}
# More columns than a lazy batch has, the last block short.
ROWS, COLUMNS = 12, 150
TOKENS = 10 * COLUMNS


def quantize_gptq(weight: NDArray[np.float32], grid: BlockQuantized, gram: NDArray[np.float64]) -> BlockQuantized:
    return Gptq(gram.astype(np.float32), TOKENS).quantize(weight, grid)


def matrix(rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_t(4, (rows, columns)).astype(np.float32)


def correlated(columns: int = COLUMNS, seed: int = 1) -> NDArray[np.float64]:
    """The Gram matrix of correlated inputs of different sizes."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(4 * columns, columns // 8)) @ random.normal(size=(columns // 8, columns))
    x += 0.3 * random.normal(size=x.shape)
    x *= 10.0 ** random.uniform(-1, 1, columns)
    return x.T @ x / len(x)


def nearest_code(grid: BlockQuantized, column: int, values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Of all codes of each row's grid at `column`, the one nearest to its value."""
    values_of_codes = all_values(grid, column)  # [rows, codes]
    return np.abs(values_of_codes - values[:, None]).argmin(axis=1)


def all_values(grid: BlockQuantized, column: int) -> NDArray[np.float64]:
    """What every code stands for: [rows, codes], infinite where a code is NaN."""
    block = column // grid.block
    scales = grid.scales[:, block].astype(np.float64)[:, None]
    codes = np.arange(2**grid.bits)
    if grid.floating:
        values = codes.astype(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
        return scales * np.where(np.isfinite(values), values, np.inf)
    zeros = 2 ** (grid.bits - 1) if grid.zero_points is None else grid.zero_points[:, block].astype(np.float64)[:, None]
    return scales * (codes - zeros)


def gptq_of_the_paper(
    weight: NDArray[np.float32], grid: BlockQuantized, gram: NDArray[np.float64]
) -> NDArray[np.int64]:
    """GPTQ with act-order, damped by 10 % of the median: each column's error is taken from later ones at once."""
    damped = gram + 0.1 * np.median(np.diag(gram)) * np.eye(len(gram))
    order = np.argsort(-np.diag(gram), kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(damped[order][:, order])).T  # U^T U is the inverse
    w = weight.astype(np.float64)[:, order]
    codes = np.empty(weight.shape, np.int64)
    for i, column in enumerate(order):
        codes[:, column] = nearest_code(grid, column, w[:, i])
        dequantized = all_values(grid, column)[np.arange(len(w)), codes[:, column]]
        w[:, i:] -= np.outer((w[:, i] - dequantized) / upper[i, i], upper[i, i:])
    return codes


def output_error(made: BlockQuantized, weight: NDArray[np.float32], gram: NDArray[np.float64]) -> float:
    """The mean of ||(w - q) x||^2."""
    off = made.dequantize().astype(np.float64) - weight
    return float(np.einsum("nk,kl,nl->", off, gram, off))


@pytest.mark.parametrize("name", FORMATS)
def test_every_code_is_that_of_the_paper(name: str) -> None:
    weight, gram = matrix(), correlated()
    grid = quantize_nearest(weight, FORMATS[name], AbsMax())
    made = quantize_gptq(weight, grid, gram)
    expected = gptq_of_the_paper(weight, grid, gram)
    if grid.floating:  # two patterns stand for zero
        expected, found = (np.where(codes == 0x80, 0, codes) for codes in (expected, made.codes))
    else:
        found = made.codes
    np.testing.assert_array_equal(found, expected)
    assert (made.codes != grid.codes).mean() > 0.05
    np.testing.assert_array_equal(made.scales, grid.scales)
    assert (made.bits, made.block, made.floating) == (grid.bits, grid.block, grid.floating)
    np.testing.assert_array_equal(made.zero_points, grid.zero_points)


def test_pieces_of_work_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = matrix(), correlated()
    grid = quantize_nearest(weight, FORMATS["int4 with zero points"], AbsMax())
    whole = quantize_gptq(weight, grid, gram).codes
    monkeypatch.setattr(gptq, "BATCH_ROWS", 5)
    monkeypatch.setattr(gptq, "BATCH_COLUMNS", 7)
    monkeypatch.setattr(gptq, "NEAR_COLUMNS", 3)
    monkeypatch.setattr(cholesky, "BLOCK", 11)
    np.testing.assert_array_equal(quantize_gptq(weight, grid, gram).codes, whole)


@pytest.mark.parametrize("name", FORMATS)
def test_outputs_are_nearer_than_round_to_nearest_leaves_them(name: str) -> None:
    for seed in range(3):
        weight, gram = matrix(seed=seed), correlated(seed=10 + seed)
        grid = quantize_nearest(weight, FORMATS[name], AbsMax())
        made = quantize_gptq(weight, grid, gram)
        assert output_error(made, weight, gram) < 0.7 * output_error(grid, weight, gram)


@pytest.mark.parametrize("name", FORMATS)
def test_inputs_of_zeros_are_quantised_to_nearest(name: str) -> None:
    weight, gram = matrix(), correlated()
    unused = np.arange(COLUMNS) % 3 == 1
    gram[unused] = gram[:, unused] = 0
    grid = quantize_nearest(weight, FORMATS[name], AbsMax())
    made = quantize_gptq(weight, grid, gram)
    assert np.isfinite(made.dequantize()).all()
    np.testing.assert_array_equal(made.codes[:, unused], grid.codes[:, unused])
    assert (made.codes[:, ~unused] != grid.codes[:, ~unused]).any()
    all_unused = quantize_gptq(weight, grid, np.zeros_like(gram))
    np.testing.assert_array_equal(all_unused.codes, grid.codes)


def test_uncorrelated_inputs_are_quantised_to_nearest() -> None:
    weight = matrix()
    grid = quantize_nearest(weight, FORMATS["int4"], AbsMax())
    made = quantize_gptq(weight, grid, np.diag(np.random.default_rng(0).uniform(0.1, 10, COLUMNS)))
    np.testing.assert_array_equal(made.codes, grid.codes)


def test_fewer_tokens_than_inputs_are_enough() -> None:
    """The Gram matrix of one token has rank 1; damping makes a factor of them, of any size."""
    weight = matrix()
    grid = quantize_nearest(weight, FORMATS["int4"], AbsMax())
    x = np.random.default_rng(2).normal(size=COLUMNS)
    for size in (1e-12, 1.0, 1e12):
        gram = np.outer(x, x) * size
        made = quantize_gptq(weight, grid, gram)
        assert output_error(made, weight, gram) < 0.1 * output_error(grid, weight, gram)
