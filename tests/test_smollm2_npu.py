"""SmolLM2 for Snapdragon NPUs, in the emulator: its first two layers on every chip, and all of it answering."""

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megrez.compile.backends.options import EngineOptions
from megrez.compile.calibrate.request import CalibrationRequest
from megrez.compile.calibrate.text import TextRequest
from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.commands.console_report import ConsoleReport
from megrez.compile.pipeline import Request, compile_bundle
from megrez.compile.staged import build_staged
from megrez.engines.targets import find_target
from megrez.runtime import Model, SamplingParams
from megrez.runtime.bundle import open_bundle
from megrez.runtime.engines import open_session
from megrez.runtime.generate import generate

pytestmark = pytest.mark.slow
QUESTION = "What is the capital of France? Answer in one sentence."
CHIPS = ("v73", "v75", "v79", "v81")
LAYERS, ANSWER, CONTEXT = 2, 32, 128
GREEDY = SamplingParams(temperature=0.0)


class FirstLayers:
    """A checkpoint without its other layers."""

    def __init__(self, whole: Any) -> None:
        self.whole = whole
        windows = whole.config.sliding_windows[:LAYERS]
        self.config = dataclasses.replace(whole.config, num_hidden_layers=LAYERS, sliding_windows=windows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def check(self) -> None: ...


def staged(checkpoint: Any, target: str, output: Path) -> Path:
    text = TextRequest(samples=4, length=CONTEXT, fidelity_tokens=256)
    request = Request(
        checkpoint=checkpoint,
        target=find_target(target).staged(),
        output=output,
        context=CONTEXT,
        calibration=CalibrationRequest(text=text),
    )
    return compile_bundle(request, ConsoleReport())


def compiled(graphs: Path, arch: str, output: Path) -> Path:
    return build_staged(str(graphs), None, output, EngineOptions(arch=arch), ConsoleReport())


# Not run: it takes the whole test process with it.
CRASHES = pytest.mark.xfail(run=False, reason="Qualcomm's emulator crashes on it, see docs/benchmarks/npu.md")


@pytest.fixture(scope="module", params=["qnn-w8a16", pytest.param("qnn-w4a16", marks=CRASHES)])
def graphs(smollm2_gguf: Path, request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = FirstLayers(open_checkpoint(str(smollm2_gguf)))
    return staged(checkpoint, request.param, tmp_path_factory.mktemp("graphs") / "b")


def cosine(a: Any, b: Any) -> float:
    x, y = np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


@pytest.mark.parametrize("arch", CHIPS)
def test_two_layers_answer_as_their_graphs_do(graphs: Path, tmp_path: Path, arch: str) -> None:
    bundle = compiled(graphs, arch, tmp_path / "b")
    ids = np.random.default_rng(0).integers(1000, 40000, 70).tolist()
    answers, caches, logits = [], [], []
    for path in (graphs, bundle):
        with closing(open_session(open_bundle(path), threads=2)) as session:
            answers.append([s.token for s in generate(session, ids, GREEDY, stop_ids=(), max_tokens=ANSWER)])
            arrays: dict[str, Any] = session._decode.arrays  # type: ignore[attr-defined]
            caches.append({name: a.astype(float) - 128 for name, a in arrays.items() if name.startswith("past")})
            logits.append(session.step(np.array([ids[:1]]), np.zeros(1, np.int32), np.zeros(1, np.int64)).copy())
    assert answers[0] == answers[1]
    assert cosine(*logits) >= 0.9999
    assert len(caches[0]) == 2 * LAYERS
    for name, cache in caches[0].items():
        assert cosine(cache, caches[1][name]) >= 0.9999, name


def test_all_of_it_answers(smollm2_gguf: Path, tmp_path: Path) -> None:
    graphs = staged(open_checkpoint(str(smollm2_gguf)), "qnn-w8a16", tmp_path / "graphs")
    with Model.open(compiled(graphs, "snapdragon-8-elite", tmp_path / "b")) as model:
        answer = model.generate([{"role": "user", "content": QUESTION}], GREEDY, max_tokens=32)
    assert (answer.text, answer.finish_reason) == ("The capital of France is Paris.", "stop")
