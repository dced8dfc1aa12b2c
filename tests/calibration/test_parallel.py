"""Work in parts gives what it gives at once."""

import threading

import numpy as np
import pytest

from megrez.calibration import parallel
from megrez.calibration.parallel import in_parts, multiply, one_blas_thread


@pytest.mark.parametrize(("rows", "step", "count"), [(0, 3, 0), (3, 3, 1), (10, 3, 4)])
def test_parts_are_all_rows_in_order(rows: int, step: int, count: int) -> None:
    parts = in_parts(rows, step, lambda part: list(range(rows))[part])
    assert len(parts) == count and [row for part in parts for row in part] == list(range(rows))


def test_parts_run_in_threads_and_their_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "default_threads", lambda: 2)
    meeting = threading.Barrier(2, timeout=10)
    in_parts(2, 1, lambda part: meeting.wait())  # passes only where both run at once
    with pytest.raises(ZeroDivisionError):
        in_parts(4, 1, lambda part: 1 // (part.start - 2))


def test_a_product_is_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "COLUMNS", 1)
    random = np.random.default_rng(0)
    a, b = random.integers(-9, 10, (13, 7)).astype(np.float32), random.integers(-9, 10, (7, 4)).astype(np.float32)
    expected = np.einsum("mk,kn->mn", a.astype(np.int64), b.astype(np.int64))
    np.testing.assert_array_equal(multiply(a, b), expected)
    np.testing.assert_array_equal(multiply(a.T.copy().T, b.T.copy().T), expected)
    wide = np.full((13, 9), 7, np.float32)
    multiply(a, b, out=wide[:, 2:6])
    np.testing.assert_array_equal(wide[:, 2:6], expected)
    assert (wide[:, :2] == 7).all() and (wide[:, 6:] == 7).all()


def test_blas_has_one_thread_until_the_end() -> None:
    found = parallel._openblas_threads()
    if found is None:
        pytest.skip("numpy has no OpenBLAS here")
    get, set_threads = found
    before = get()
    set_threads(2)
    try:
        with pytest.raises(ZeroDivisionError), one_blas_thread():
            assert get() == 1
            raise ZeroDivisionError
        assert get() == 2
    finally:
        set_threads(before)


def test_another_blas_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_openblas_threads", lambda: None)
    with one_blas_thread():
        assert in_parts(2, 1, lambda part: part.start) == [0, 1]
