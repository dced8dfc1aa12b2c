"""Who sees whom, beside the definition position by position."""

import numpy as np
import pytest

from megrez.engines.qnn.masks import visible


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize(("length", "new", "capacity"), [(0, 4, 5), (3, 4, 8), (5, 1, 5), (6, 1, 9), (0, 1, 1)])
def test_a_position_sees_itself_and_what_came_before(length: int, new: int, capacity: int, window: int | None) -> None:
    expected = np.zeros((new, capacity + new), bool)
    for query in range(new):
        for position in range(length + query + 1):
            column = position if position < length else capacity + position - length
            expected[query, column] = window is None or length + query - position < window
    np.testing.assert_array_equal(visible(length, new, capacity, window), expected)
