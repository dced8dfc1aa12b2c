"""Headless Chromium, driven by Selenium, and a served session that answers in plain words."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.answering import CAPACITY, Answering
from tests.browser.chat_page import ChatPage
from tests.runtime.conftest import MEGREZ_TEMPLATE, byte_level_tokenizer, plain_manifest, write_bundle
from tests.runtime.serving.http.servers import Running, fake_llm, serving

# Nothing but the page under test is asked for, by Chromium itself neither.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--lang=en",
)


def _found(*names: str) -> str:
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"there is no {names[0]} on this machine: install it (Debian: chromium, chromium-driver)")
    return path


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    missing = "selenium is not installed: run  pip install 'megrez-compile[browser]'"
    webdriver = pytest.importorskip("selenium.webdriver", reason=missing)
    options = webdriver.ChromeOptions()
    options.binary_location = _found("chromium", "chromium-browser", "google-chrome")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(_found("chromedriver")))
    try:
        yield started
    finally:
        started.quit()


@pytest.fixture
def page(driver: Any) -> Iterator[ChatPage]:
    chat = ChatPage(driver)
    chat.resize(1100, 800)
    yield chat
    driver.get("about:blank")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "tiny"
    return write_bundle(path, manifest=plain_manifest(), tokenizer=byte_level_tokenizer(), template=MEGREZ_TEMPLATE)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Running]]:
    """Start a server whose session answers at once; with gated=True each token waits for `llm.session.allow()`."""
    with contextlib.ExitStack() as stack:

        def build(*, gated: bool = False, limits: Any = None, name: str = "tiny") -> Running:
            llm = fake_llm(folder, Answering, slots=1, capacity=CAPACITY)
            if not gated:
                llm.session.open()
            return stack.enter_context(serving(llm, limits=limits, name=name))

        yield build
