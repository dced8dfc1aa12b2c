"""Our compiled operators for the tests that need them, and when there are none to test."""

import pytest

from megrez.engines.ort import custom_ops

LIBRARY = custom_ops.find_library()
RUN = LIBRARY is not None and custom_ops.instructions(LIBRARY) is not None

needs_kernels = pytest.mark.skipif(not RUN, reason="no kernels: no C compiler was found, or no AVX2")
needs_library = pytest.mark.skipif(LIBRARY is None, reason="no kernels: no C compiler was found")
