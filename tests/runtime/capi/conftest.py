"""libmegrez compiled once, by every compiler's strictest word, and tiny bundles for engines of tests."""

import dataclasses
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from megrez.runtime.capi.build_ext import LINK_FLAGS, definitions
from megrez.runtime.engines import MODULES
from tests.runtime.capi import fake_engine
from tests.runtime.capi.driver import Api, Failed
from tests.runtime.conftest import MEGREZ_TEMPLATE, byte_level_tokenizer, plain_manifest, write_bundle

ROOT = Path(__file__).parents[3]
CAPI = ROOT / "runtime" / "capi"
STRICT = ("-Wall", "-Wextra", "-Werror")
Build = Callable[..., Path]


@pytest.fixture(scope="session")
def compiler() -> str:
    found = shutil.which("cc")
    if found is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    return found


def compile_library(compiler: str, output: Path, *flags: str, link: Sequence[str] = LINK_FLAGS) -> Path:
    macros = [f"-D{name}={value}" for name, value in definitions("0.0.test")]
    sources = [CAPI / "megrez.c", CAPI / "python.c"]
    include = f"-I{sysconfig.get_path('include')}"
    base = [compiler, "-std=gnu11", "-fPIC", "-shared", "-fvisibility=hidden", *STRICT, *flags, include]
    subprocess.run([*base, *macros, *map(str, sources), "-o", str(output), *link], check=True)
    return output


@pytest.fixture(scope="session")
def library(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library(compiler, tmp_path_factory.mktemp("capi") / "libmegrez.so", "-O1")


@pytest.fixture(scope="session")
def api(library: Path) -> Api:
    """In this process, whose Python answers."""
    return Api(library)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One for each engine of fake_engine.py."""
    folder = tmp_path_factory.mktemp("bundles")
    return {
        engine: write_bundle(
            folder / engine,
            manifest=dataclasses.replace(plain_manifest(), engine=engine),
            tokenizer=byte_level_tokenizer(),
            template=MEGREZ_TEMPLATE,
        )
        for engine in fake_engine.SESSIONS
    }


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of fake_engine.py, in this process."""
    for name, module in fake_engine.MODULES.items():
        monkeypatch.setitem(MODULES, name, module)


@pytest.fixture
def open_model(api: Api, bundles: dict[str, Path], engines: None) -> Iterator[Callable[..., int]]:
    """Open the bundle of an engine; closed afterwards."""
    opened: list[int] = []

    def build(engine: str = "fake", **options: object) -> int:
        opened.append(api.open(bundles[engine], **{"slots": 2, **options}))
        return opened[-1]

    yield build
    for handle in opened:
        try:
            api.do("close", handle)
        except Failed as error:
            assert "was closed" in error.message


@pytest.fixture
def model(open_model: Callable[..., int]) -> int:
    return open_model()
