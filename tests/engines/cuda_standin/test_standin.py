"""CUDA's callers with a stand-in for its runtime under the real cuda.bindings. No GPU is used and no kernel runs.

In a process of their own, for cuda.bindings takes the functions it calls once: see standin.py. To see one file's:
`MEGREZ_CUDA_STANDIN=libcudart_standin.so python -m pytest -p tests.engines.cuda_standin.plugin FILE`.
"""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.engines.cuda_standin.plugin import LIBRARY
from tests.engines.cuda_standin.standin import HERE, TABLE, build, compiler

CASES = sorted(HERE.glob("cases_*.py"))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What went wrong in each case of each file: nothing, mostly."""
    for needed in (TABLE, "tensorrt_rtx", "onnxruntime"):
        pytest.importorskip(needed)
    if sys.platform != "linux" or compiler() is None:
        pytest.skip("the stand-in is C for Linux: install a C compiler")
    folder = tmp_path_factory.mktemp("standin")
    report = folder / "report.xml"
    run = [sys.executable, "-m", "pytest", "-q", "-p", "tests.engines.cuda_standin.plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*run, f"--junitxml={report}", f"--basetemp={folder / 'temp'}", *map(str, CASES)],
        env={**os.environ, LIBRARY: str(build(folder))},
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
    )
    assert report.exists(), done.stdout + done.stderr
    found: dict[str, dict[str, str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        wrong = [f"{one.tag}: {one.get('message')}\n{one.text}" for one in case if not one.tag.startswith("system")]
        file = case.get("classname", "").rpartition(".")[2]
        found.setdefault(file, {})[case.get("name", "")] = "\n".join(wrong)
    return found


@pytest.mark.parametrize("file", CASES, ids=lambda path: path.stem)
def test_cases(outcomes: dict[str, dict[str, str]], file: Path) -> None:
    assert file.stem in outcomes, "nothing of it ran"
    wrong = {name: what for name, what in outcomes[file.stem].items() if what}
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())
