"""One server for the tests of a module that only ask, and servers of one's own for those that do more."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.conftest import MEGREZ_TEMPLATE, byte_level_tokenizer, plain_manifest, write_bundle
from tests.runtime.serving.http.clients import openai_client
from tests.runtime.serving.http.servers import Echo, Running, fake_llm, serving


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "tiny"
    return write_bundle(path, manifest=plain_manifest(), tokenizer=byte_level_tokenizer(), template=MEGREZ_TEMPLATE)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with serving(fake_llm(folder)) as running:
        yield running


@pytest.fixture(scope="module")
def echo(folder: Path) -> Iterator[Running]:
    with serving(fake_llm(folder, Echo, slots=4, capacity=1200)) as running:
        yield running


@pytest.fixture(scope="module")
def client(echo: Running) -> Iterator[Any]:
    """OpenAI's client of `echo`, unless a module has a client of its own."""
    with openai_client(echo) as client:
        yield client


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Running]]:
    """Start a server: arguments of fake_llm, and `limits`."""
    with contextlib.ExitStack() as stack:

        def build(*args: Any, limits: Any = None, queue: int = 256, **shape: Any) -> Running:
            llm = fake_llm(folder, *args, queue=queue, **shape)
            return stack.enter_context(serving(llm, queue_limit=queue, limits=limits))

        yield build
