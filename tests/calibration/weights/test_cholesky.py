"""Blocked Cholesky factors beside numpy's in float64."""

import numpy as np
import pytest
from numpy.typing import NDArray

from megrez.calibration.weights import cholesky as module
from megrez.calibration.weights.cholesky import cholesky

SIZE = 41


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 8)


def positive_definite() -> NDArray[np.float64]:
    x = np.random.default_rng(0).normal(size=(2 * SIZE, SIZE))
    return x.T @ x / len(x)


def test_the_factor_is_lower_triangular_and_that_of_numpy() -> None:
    a = positive_definite()
    found = cholesky(a.astype(np.float32)).factor
    np.testing.assert_allclose(found, np.linalg.cholesky(a), rtol=0, atol=1e-5)
    assert not np.triu(found, 1).any()


def test_only_the_lower_triangle_is_read() -> None:
    a = positive_definite()
    lower = np.tril(a).astype(np.float32)
    np.testing.assert_array_equal(cholesky(lower.copy()).factor, cholesky(a.astype(np.float32)).factor)


@pytest.mark.parametrize("columns", [1, 50])
def test_solutions_are_those_of_numpy(columns: int) -> None:
    a, b = positive_definite(), np.random.default_rng(1).normal(size=(SIZE, columns))
    found = cholesky(a.astype(np.float32)).solve(b.astype(np.float32))
    np.testing.assert_allclose(found, np.linalg.solve(a, b), rtol=0, atol=2e-4)


def test_a_matrix_that_is_not_positive_definite_is_refused() -> None:
    a = positive_definite()
    a[-1, -1] = -1
    with pytest.raises(np.linalg.LinAlgError):
        cholesky(a.astype(np.float32))
