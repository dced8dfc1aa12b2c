import ml_dtypes
import numpy as np
import pytest

from megrez.calibration.weights.absmax import CHUNK, quantize_channels
from megrez.runtime.errors import CheckpointError

RANDOM = np.random.default_rng(0)
E4M3 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)


def random_matrix(rows, columns):
    """Rows of very different sizes, one of them zeros."""
    matrix = (RANDOM.standard_t(4, (rows, columns)) * np.exp(RANDOM.normal(0, 4, (rows, 1)))).astype(np.float32)
    matrix[rows // 2] = 0
    return matrix


@pytest.mark.parametrize("floating", [False, True])
def test_every_code_is_the_nearest_on_its_rows_grid(floating):
    weight = random_matrix(7, 45)
    made = quantize_channels(weight, floating=floating)
    assert (made.bits, made.block, made.floating, made.zero_points, made.offsets) == (8, 45, floating, None, None)
    assert made.scales.shape == (7, 1) and (made.scales > 0).all()
    grid = E4M3[np.isfinite(E4M3)] if floating else np.arange(-127.0, 128.0)
    candidates = grid * made.scales.astype(np.float64)  # [N, codes]
    least = np.abs(candidates[:, None, :] - weight[:, :, None]).min(axis=-1)
    error = np.abs(made.dequantize().astype(np.float64) - weight)
    assert (error <= least * (1 + 1e-5) + 1e-6 * np.abs(weight)).all()


@pytest.mark.parametrize(("floating", "top"), [(False, 127), (True, 448)])
def test_the_largest_of_a_row_is_kept(floating, top):
    weight = random_matrix(20, 33)
    made = quantize_channels(weight, floating=floating)
    largest = np.abs(weight).max(axis=1)
    some = largest > 0
    np.testing.assert_allclose(made.scales[some, 0], largest[some] / top, rtol=1e-6)
    np.testing.assert_allclose(np.abs(made.dequantize()).max(axis=1), largest, rtol=1e-6)


@pytest.mark.parametrize("floating", [False, True])
def test_pieces_of_work_join_without_a_seam(floating):
    columns = CHUNK // 4
    weight = random_matrix(10, columns)
    whole = quantize_channels(weight, floating=floating)
    for row in (3, 4, 9):
        alone = quantize_channels(weight[row : row + 1], floating=floating)
        np.testing.assert_array_equal(whole.codes[row], alone.codes[0])
        assert whole.scales[row] == alone.scales[0]


@pytest.mark.parametrize("floating", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(floating, bad):
    weight = random_matrix(3, 8)
    weight[1, 5] = bad
    with pytest.raises(CheckpointError, match="not finite"):
        quantize_channels(weight, floating=floating)


def test_numbers_too_small_for_a_scale_are_zero():
    made = quantize_channels(np.full((1, 4), 1e-42, np.float32))
    assert made.scales == 1 and not made.dequantize().any()
