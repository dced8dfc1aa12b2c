"""`megrez-compile --target qnn-*`: static graphs on the CPU, and their contexts in the emulator of an NPU."""

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megrez.runtime.bundle import open_bundle
from megrez.runtime.engines import open_session
from megrez.runtime.errors import EngineError, UsageError
from megrez.runtime.generate import generate
from megrez.runtime.sampling import SamplingParams
from tests.graphs import IDS

# Between them all that sets the graphs of families apart: norms of heads, biases, windows of some layers and of all.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama-biases-tied": {"biases": True, "tied": True},
    "mistral-window": {"family": "mistral", "sliding_window": 9},
    "qwen3-windows-biases": {"family": "qwen3", "sliding_window": 9, "biases": True},
}
# Wide enough, beside its vocabulary, that two tokens are never a rounding apart. The emulator takes a second a layer.
DECISIVE: dict[str, Any] = {"tied": True, "hidden": 192, "layers": 1}
CONTEXT, CHUNK, ANSWER = 64, 8, 32
STAGE = ("--context", CONTEXT, "--chunk", CHUNK, "--calib-tokens", CONTEXT, "--stage", "onnx")
GREEDY = SamplingParams(temperature=0.0)


def session_of(bundle: Path) -> Any:
    return open_session(open_bundle(bundle), threads=1)


def manifest_of(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return found


@pytest.fixture(scope="module")
def staged_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A staged bundle, once for each checkpoint and target."""
    made: dict[tuple[Path, str], Path] = {}

    def make(megrez_compile: Any, folder: Path, target: str) -> Path:
        if (folder, target) not in made:
            output = tmp_path_factory.mktemp("staged") / "graphs"
            done = megrez_compile(folder, "--target", target, *STAGE, "-o", output)
            assert done.code == 0, done.err
            made[folder, target] = output
        return made[folder, target]

    return make


def cosine(a: Any, b: Any) -> float:
    x, y = np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def compare(exact: Any, emulated: Any, ids: list[int]) -> None:
    """Both sessions read `ids` in chunks and single tokens: logits and every cache hold the same."""
    position = 0
    for width in (CHUNK, CHUNK - 3, 1, 1):
        tokens = np.array([ids[position : position + width]])
        arguments = tokens, np.array([position], np.int32), np.arange(width)
        expected, found = (session.step(*arguments).copy() for session in (exact, emulated))
        assert cosine(found, expected) >= 0.9999
        position += width
    for name, cache in exact._decode.arrays.items():
        if name.startswith("past_key_values"):
            twin = emulated._decode.arrays[name].astype(np.float64)
            assert cosine(twin - 128, cache.astype(np.float64) - 128) >= 0.9999, name


@pytest.mark.parametrize(
    ("family", "target"),
    [
        ("mistral-window", "qnn-w8a16"),
        ("qwen3-windows-biases", "qnn-w4a16"),
        pytest.param("qwen3-windows-biases", "qnn-w8a16", marks=pytest.mark.slow),
        pytest.param("llama-biases-tied", "qnn-w8a16", marks=pytest.mark.slow),
    ],
)
def test_contexts_compute_what_their_graphs_say(
    checkpoint_of: Any, megrez_compile: Any, staged_of: Any, tmp_path: Path, family: str, target: str
) -> None:
    shape = {**FAMILIES[family], "hidden": 192}
    staged = staged_of(megrez_compile, checkpoint_of(**shape), target)
    done = megrez_compile(staged, "--arch", "snapdragon-8-elite", "-o", tmp_path / "b")
    assert done.code == 0, done.err
    with closing(session_of(staged)) as exact, closing(session_of(tmp_path / "b")) as emulated:
        compare(exact, emulated, IDS[0])


@pytest.fixture
def staged(checkpoint_of: Any, megrez_compile: Any, staged_of: Any) -> Path:
    found: Path = staged_of(megrez_compile, checkpoint_of(**DECISIVE), "qnn-w8a16")
    return found


# The other tests' contexts are for the two chips between these.
@pytest.mark.parametrize(
    "arch",
    [
        "snapdragon-8-gen-2",
        pytest.param("v75", marks=pytest.mark.slow),
        pytest.param("snapdragon-8-elite", marks=pytest.mark.slow),
        "v81",
    ],
)
def test_an_answer_is_the_graphs_own_on_every_chip(
    staged: Path, megrez_compile: Any, tmp_path: Path, arch: str
) -> None:
    assert megrez_compile(staged, "--arch", arch, "-o", tmp_path / "b").code == 0
    answers = []
    for bundle in (staged, tmp_path / "b"):
        with closing(session_of(bundle)) as session:
            steps = generate(session, IDS[0], GREEDY, stop_ids=(), max_tokens=ANSWER)
            answers.append([step.token for step in steps])
    assert len(answers[0]) == ANSWER and len(set(answers[0])) > 4
    assert answers[1] == answers[0]
    layout = json.loads((tmp_path / "b" / "npu.json").read_text())
    device = manifest_of(tmp_path / "b")["device"]
    assert device["capabilities"] == [layout["compiled"]["chip"], f"v{layout['compiled']['htp_arch']}"]


def test_a_checkpoint_becomes_contexts_by_way_of_its_graphs(
    checkpoint_of: Any, megrez_compile: Any, megrez: Any, tmp_path: Path
) -> None:
    build = ("--target", "qnn-w8a16", "--arch", "v75", "--context", 48, "--chunk", 16, "-o", tmp_path / "b")
    done = megrez_compile(checkpoint_of(), *build, "--calib-tokens", 48)
    assert done.code == 0, done.err
    assert "Qualcomm's QNN libraries come with onnxruntime-qnn under Qualcomm's own licence" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    manifest = manifest_of(tmp_path / "b")
    assert (manifest["engine"], manifest["context_length"], manifest["measured"]["of"]) == ("qnn", 48, "simulation")
    assert manifest["kv_cache"] == {
        "dtype": "uint8",
        "bytes_per_token": 2 * 2 * 2 * 32,
        "scales": None,
        "keys": None,
        "fidelity": [],
    }
    assert manifest["device"]["chunk"] == 16 and manifest["device"]["slots"] == 1
    open_bundle(tmp_path / "b", verify=True)
    graphs = {f"{kind}{end}" for kind in ("prefill-00", "decode-00", "head") for end in (".onnx", "_qnn.bin")}
    others = {"embedding.npy", "rotary.npy", "npu.json", "tokenizer.json", "chat_template.jinja"}
    assert {file["path"] for file in manifest["files"]} == graphs | others
    code, out, err = megrez("run", tmp_path / "b", "hello", "--max-tokens", 4, "--json")
    assert code == 0 and json.loads(out)["output_tokens"] == 4, err
    code, out, _ = megrez("inspect", tmp_path / "b")
    assert code == 0 and "snapdragon-8-gen-3, v75, onnxruntime-qnn" in out


def test_contexts_that_fail_leave_the_calibration_to_the_next_try(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = ("--target", "qnn-w8a16", "--arch", "v75", "--context", 48, "--chunk", 16, "--algorithm", "gptq")
    arguments = (checkpoint_of(layers=1), *build, "--calib-tokens", 48, "-o", tmp_path / "b")
    with monkeypatch.context() as patched:
        patched.setattr("megrez.compile.backends.qnn.compile_contexts", crash)
        assert megrez_compile(*arguments).code == 1
    kept = [path.name for path in tmp_path.iterdir() if path.is_dir()]
    assert len(kept) == 1 and kept[0].startswith("b.calibration.")
    done = megrez_compile(*arguments)
    assert done.code == 0 and [path.name for path in tmp_path.iterdir()] == ["b"], done.err


def crash(*arguments: object, **named: object) -> None:
    raise EngineError("the compiler crashed")


def test_shared_weights_are_one_file_that_the_emulator_cannot_open(
    staged: Path, megrez_compile: Any, megrez: Any, tmp_path: Path
) -> None:
    done = megrez_compile(staged, "--arch", "v79", "--share-weights", "-o", tmp_path / "b")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "b").glob("*.bin"))) == 2
    code, _, err = megrez("run", tmp_path / "b", "hello")
    assert code == 1 and "weight-shared contexts run on a chip only, not in the emulator" in err


def test_what_an_npu_does_not_take_is_refused_before_any_work(
    checkpoint_of: Any, staged: Path, megrez_compile: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / ".phone.graphs").mkdir()
    (tmp_path / ".phone.graphs" / "thesis.txt").write_text("years of work")
    folder, output = checkpoint_of(), ("-o", tmp_path / "b")
    qnn = (folder, "--target", "qnn-w8a16")
    for arguments, said in (
        ((*qnn, *output), "--arch is missing: an NPU's context is for one chip, name it: snapdragon-8-gen-2 (v73), "),
        ((*qnn, "--arch", "snapdragon-9", *output), "unknown chip 'snapdragon-9': did you mean snapdragon-"),
        ((*qnn, "--arch", "v79", "--batch", 2, *output), "qnn-w8a16 takes one sequence in static shapes"),
        ((*qnn, "--arch", "v79", "--chunk", 0, *output), "--chunk is 0, a context of 512 tokens takes 1 to 512"),
        ((*qnn, "--arch", "v79", "--context", 9999, *output), "--context is 9999, this model takes 1 to 512"),
        ((*qnn, "--arch", "v79", "--stage", "onnx", *output), "--arch and --share-weights are for contexts"),
        ((*qnn, "--arch", "v79", "-o", tmp_path / "file"), "file exists and is not a bundle: choose another -o"),
        ((*qnn, "--arch", "v79", "-o", tmp_path / "phone"), "phone.graphs exists and is not a bundle"),
        ((folder, "--target", "cpu-fp32", "--chunk", 8, *output), "--chunk and --share-weights are for NPUs"),
        ((folder, "--target", "cpu-int4", "--block-size", "channel", *output), "--block-size channel is for NPUs"),
        ((staged, *output), "--arch is missing"),
        ((staged, "--arch", "v79", "--chunk", 4, *output), "was staged with its own --chunk"),
    ):
        done = megrez_compile(*arguments)
        assert done.code == 2 and said in done.err and "Traceback" not in done.err, (said, done.err)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".phone.graphs", "file"]
    assert (tmp_path / ".phone.graphs" / "thesis.txt").read_text() == "years of work"


def test_a_session_keeps_to_what_was_built(staged: Path, megrez: Any) -> None:
    bundle = open_bundle(staged)
    with pytest.raises(UsageError, match="2 slots were requested, an NPU's static graphs have one"):
        open_session(bundle, threads=1, slots=2)
    with pytest.raises(UsageError, match=f"a context of 65 tokens was requested, .* allows 1 to {CONTEXT}"):
        open_session(bundle, threads=1, capacity=CONTEXT + 1)
    code, _, err = megrez("run", staged, "the " * 80)
    assert code == 2 and f"the context holds {CONTEXT}" in err


def test_without_the_extra_one_line_names_it(
    staged: Path, megrez_compile: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from megrez.engines.qnn.library import load_library

    load_library.cache_clear()
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
    done = megrez_compile(staged, "--arch", "v79", "-o", tmp_path / "b")
    assert done.code == 1 and "run  pip install 'megrez-compile[qnn]'" in done.err
    load_library.cache_clear()
