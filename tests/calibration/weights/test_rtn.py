import numpy as np
import pytest

from megrez.calibration.weights.rtn import quantize_rtn
from megrez.runtime.errors import CheckpointError

FORMATS = [(bits, symmetric, search) for bits in (4, 8) for symmetric in (True, False) for search in (True, False)]


def random_matrix(rows, columns, seed=0):
    """Heavy-tailed weights of either sign; row 0 has one sign only."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_t(4, (rows, columns)).astype(np.float32)
    matrix[0] = np.abs(matrix[0])
    return matrix


def naive_code(value, scale, zero, bits):
    """Of all codes, the one whose value is nearest, in float64; the lowest when two are equally near."""
    return min(range(2**bits), key=lambda code: abs(float(value) - float(scale) * (code - int(zero))))


def zero_points(quantized):
    if quantized.zero_points is None:
        return np.full(quantized.scales.shape, 2 ** (quantized.bits - 1))
    return quantized.zero_points


@pytest.mark.parametrize(("bits", "symmetric", "search"), FORMATS)
def test_every_code_is_the_nearest_on_its_blocks_grid(bits, symmetric, search):
    weight = random_matrix(3, 70)
    quantized = quantize_rtn(weight, bits=bits, block=32, symmetric=symmetric, search=search)
    assert (quantized.zero_points is None) == symmetric
    assert quantized.scales.shape == (3, 3)
    for row, column in np.ndindex(weight.shape):
        scale = float(quantized.scales[row, column // 32])
        zero = zero_points(quantized)[row, column // 32]
        nearest = naive_code(weight[row, column], scale, zero, bits)
        found = int(quantized.codes[row, column])
        tie = abs(weight[row, column] / scale + int(zero) - (found + nearest) / 2) < 1e-4
        assert found == nearest or (abs(found - nearest) == 1 and tie)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_without_a_search_no_weight_is_further_than_its_range_allows(bits, block, symmetric):
    weight = random_matrix(5, 300)
    quantized = quantize_rtn(weight, bits=bits, block=block, symmetric=symmetric, search=False)
    error = np.abs(quantized.dequantize() - weight)
    steps = np.abs(np.repeat(quantized.scales, block, axis=1)[:, :300])
    # Symmetric codes end one step short of the extreme of the lesser side; a rounded zero point moves either end.
    assert (error <= steps * (1.0 if symmetric else 0.5 + 0.5) + 1e-6).all()
    assert (error <= steps * 0.5 + 1e-6).mean() > 0.9


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_search_lowers_every_blocks_squared_error_or_leaves_it(bits, symmetric):
    weight = random_matrix(16, 256)
    errors = [
        np.square(quantize_rtn(weight, bits=bits, block=32, symmetric=symmetric, search=search).dequantize() - weight)
        .reshape(16, 8, 32)
        .sum(axis=-1)
        for search in (False, True)
    ]
    assert (errors[1] <= errors[0] * (1 + 1e-3)).all()
    assert errors[1].sum() < 0.97 * errors[0].sum()


@pytest.mark.parametrize(("bits", "symmetric", "search"), FORMATS)
def test_zero_blocks_and_vanishing_ones_come_back_as_zero(bits, symmetric, search):
    weight = random_matrix(4, 96)
    weight[1, 32:64] = 0
    weight[2, :32] = np.float32(1e-42)
    weight[3] = 0
    values = quantize_rtn(weight, bits=bits, block=32, symmetric=symmetric, search=search).dequantize()
    assert not values[1, 32:64].any() and not values[2, :32].any() and not values[3].any()
    assert np.isfinite(values).all() and values[1, :32].any()


@pytest.mark.parametrize(("bits", "symmetric", "search"), FORMATS)
def test_a_short_last_block_is_what_the_block_alone_would_be(bits, symmetric, search):
    weight = random_matrix(6, 100)
    whole = quantize_rtn(weight, bits=bits, block=64, symmetric=symmetric, search=search)
    alone = quantize_rtn(weight[:, 64:].copy(), bits=bits, block=64, symmetric=symmetric, search=search)
    np.testing.assert_array_equal(whole.codes[:, 64:], alone.codes)
    np.testing.assert_array_equal(whole.scales[:, 1:], alone.scales)
    np.testing.assert_array_equal(zero_points(whole)[:, 1:], zero_points(alone))


@pytest.mark.parametrize(("bits", "symmetric", "search"), FORMATS)
def test_threads_and_pieces_of_work_change_nothing(bits, symmetric, search, monkeypatch):
    weight = random_matrix(37, 96)
    whole = quantize_rtn(weight, bits=bits, block=32, symmetric=symmetric, search=search, threads=1)
    monkeypatch.setattr("megrez.calibration.weights.rtn.CHUNK", 500)
    pieces = quantize_rtn(weight, bits=bits, block=32, symmetric=symmetric, search=search, threads=3)
    np.testing.assert_array_equal(whole.codes, pieces.codes)
    np.testing.assert_array_equal(whole.scales, pieces.scales)
    np.testing.assert_array_equal(zero_points(whole), zero_points(pieces))


def test_weights_already_on_an_eight_bit_grid_keep_their_values():
    """As in GGUF's Q8_0: signed codes to 127 and a scale per 32 weights."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (8, 4, 32)).astype(np.float32)
    codes[..., 0] = 127
    weight = (codes * rng.random((8, 4, 1), dtype=np.float32)).reshape(8, 128)
    values = quantize_rtn(weight, bits=8, block=32, symmetric=True).dequantize()
    np.testing.assert_allclose(values, weight, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("search", [True, False])
def test_a_weight_that_is_not_finite_is_refused(value, search):
    weight = random_matrix(4, 64)
    weight[3, 50] = value
    with pytest.raises(CheckpointError, match="not finite"):
        quantize_rtn(weight, bits=4, block=32, symmetric=False, search=search)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("search", [True, False])
def test_positive_scales_reach_both_extremes_of_a_block(bits, search):
    weight = random_matrix(16, 200)
    weight[3] = 0
    quantized = quantize_rtn(weight, bits=bits, block=32, symmetric=True, positive=True, search=search)
    assert (quantized.scales > 0).all() and quantized.zero_points is None
    assert not quantized.dequantize()[3].any()
    steps = np.repeat(quantized.scales, 32, axis=1)[:, :200]
    error = np.abs(quantized.dequantize() - weight)
    if not search:
        assert (error <= steps * 0.5 + 1e-5).all()
        return
    plain = quantize_rtn(weight, bits=bits, block=32, symmetric=True, positive=True, search=False)
    starts = np.arange(0, 200, 32)
    found, without = (np.add.reduceat((q.dequantize() - weight) ** 2, starts, axis=1) for q in (quantized, plain))
    assert (found <= without * (1 + 1e-4)).all()
