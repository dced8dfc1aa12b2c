"""Our compiled operators for the tests that need them, and when there are none to test."""

import pytest

from megrez.engines.ort import custom_ops

LIBRARY = custom_ops.find_library()

needs_kernels = pytest.mark.skipif(
    LIBRARY is None or not custom_ops.judge(LIBRARY), reason="no kernels: no C compiler was found, or no AVX2"
)
