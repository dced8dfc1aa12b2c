"""For pytest in a process of its own: loads the stand-in before anything imports cuda.bindings. See test_standin.py."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.cuda_standin.standin import StandIn

LIBRARY = "MEGREZ_CUDA_STANDIN"
_loaded: list[StandIn] = []


def pytest_configure() -> None:
    _loaded.append(StandIn(Path(os.environ[LIBRARY])))
    _loaded[0].install()


@pytest.fixture
def gpu() -> Iterator[StandIn]:
    """A device of capability 8.9 with 1 GiB. Fails what leaves something on it, or frees what is not."""
    _loaded[0].reset()
    yield _loaded[0]
    assert _loaded[0].report() == []
