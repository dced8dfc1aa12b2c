"""`megrez-compile --target trt-*` from a checkpoint, and from a staged bundle without torch; nothing runs on a GPU."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cuda.bindings import runtime

from megrez.runtime.bundle import open_bundle
from tests.engine_graphs import ONE_LAYER, SHAPE

# The algorithm, --arch, and the capabilities that it names.
TARGETS = {
    "trt-fp16": (None, "rtx-4090,sm_120", ["sm_89", "sm_120"]),
    "trt-int8": ("rtn", "rtx-4090", ["sm_89"]),
    "trt-fp8": ("rtn", "rtx-4090", ["sm_89"]),
    "trt-int4": ("rtn", "rtx-4090", ["sm_89"]),
    "trt-nvfp4": ("gptq", "rtx-5090", ["sm_120"]),
}


def manifest_of(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return found


@pytest.fixture(scope="module")
def folder_of_engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture
def engine_of(checkpoint_of: Any, megrez_compile: Any, folder_of_engines: Path) -> Callable[[str], Path]:
    """A target's bundle, built by the first test that asks."""

    def make(target: str) -> Path:
        output = folder_of_engines / target
        if not output.exists():
            algorithm, arch, _ = TARGETS[target]
            options = () if algorithm is None else ("--algorithm", algorithm)
            build = ("--target", target, "--context", 64, "--batch", 3, "--arch", arch)
            done = megrez_compile(checkpoint_of(**ONE_LAYER), *build, *options, "-o", output)
            assert done.code == 0, done.err
        return output

    return make


# Engines of the others are built below and in tests/engines/tensorrt, their staged bundles in test_staged_bundles.py.
QUICK = ("trt-fp16", "trt-int8", "trt-nvfp4")


@pytest.mark.parametrize(
    "target", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in TARGETS if name not in QUICK)]
)
def test_a_checkpoint_becomes_an_engine(engine_of: Callable[[str], Path], target: str) -> None:
    bundle = engine_of(target)
    open_bundle(bundle, verify=True)
    manifest = manifest_of(bundle)
    assert (manifest["target"], manifest["engine"], manifest["context_length"]) == (target, "tensorrt", 64)
    assert manifest["kv_cache"] == {
        "dtype": "float16",
        "bytes_per_token": 1 * 2 * 2 * 64 * 2,
        "scales": None,
        "keys": None,
        "fidelity": [],
    }
    assert manifest["device"]["capabilities"] == TARGETS[target][2] and manifest["device"]["slots"] == 3
    files = {file["path"] for file in manifest["files"]}
    assert files == {"model.plan", "fusion.json", "tokenizer.json", "chat_template.jinja"}
    if target in ("trt-int8", "trt-nvfp4"):  # what cannot run here is stated as calibration simulated it
        assert manifest["measured"]["of"] == "simulation" and manifest["measured"]["fidelity"]["tokens"] > 0


def test_an_engine_is_inspected_anywhere_and_run_where_its_gpu_is(
    engine_of: Callable[[str], Path], megrez: Any, tmp_path: Path
) -> None:
    shutil.copytree(engine_of("trt-fp16"), tmp_path / "b")
    code, out, _ = megrez("inspect", tmp_path / "b", "--fusion")
    assert code == 0 and "1 _gemv_mha_v1" in out and "5 fp16" in out
    assert megrez("inspect", tmp_path / "b", "--fusion", "--json-file", tmp_path / "f.json")[0] == 0
    written = json.loads((tmp_path / "f.json").read_text())
    assert written == json.loads((tmp_path / "b" / "fusion.json").read_text())
    assert set(written["decode"]) == {"attention_kernels", "cache_copies", "gemm_types", "unfused"}
    code, out, _ = megrez("inspect", tmp_path / "b")
    assert code == 0 and "sm_89, sm_120, tensorrt_rtx" in out
    if no_gpu():
        code, out, err = megrez("run", tmp_path / "b", "hello")
        assert (code, out) == (1, "") and err.startswith("error: no NVIDIA GPU can be used here (cudaGetDevice")
    os.truncate(tmp_path / "b" / "model.plan", 1000)
    code, _, err = megrez("run", tmp_path / "b", "hello")
    assert code == 1 and "model.plan has 1000 bytes, expected" in err


def no_gpu() -> bool:
    status, _ = runtime.cudaGetDeviceCount()
    return bool(status != runtime.cudaError_t.cudaSuccess)


def test_the_whole_library_is_built_for_without_arch(checkpoint_of: Any, megrez_compile: Any, tmp_path: Path) -> None:
    build = ("--target", "trt-fp8", "--algorithm", "rtn", "--quantize-head", "--context", 64)
    done = megrez_compile(checkpoint_of(**ONE_LAYER), *build, "-o", tmp_path / "b")
    assert done.code == 0, done.err
    assert manifest_of(tmp_path / "b")["device"]["capabilities"] == ["sm_89", "sm_120", "sm_121"]
    fusion = json.loads((tmp_path / "b" / "fusion.json").read_text())
    assert fusion["decode"]["gemm_types"] == {"fp8": 5}


@pytest.fixture(scope="module")
def folder_of_staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("staged")


@pytest.fixture
def staged(checkpoint_of: Any, megrez_compile: Any, folder_of_staged: Path) -> Path:
    """A staged bundle, built by the first test that asks."""
    output = folder_of_staged / "b"
    if not output.exists():
        build = ("--target", "trt-int8", "--algorithm", "rtn", "--context", 64, "--stage", "onnx")
        done = megrez_compile(checkpoint_of(**ONE_LAYER), *build, "-o", output)
        assert done.code == 0, done.err
    return output


BLOCKED = ("torch", "transformers", "optimum", "onnxscript", "huggingface_hub", "gguf", "onnxruntime")


def test_a_staged_bundle_becomes_an_engine_without_torch(staged: Path, tmp_path: Path) -> None:
    block = f"import sys; sys.modules.update(dict.fromkeys({BLOCKED!r}));"
    run = f"sys.argv[1:] = {[str(staged), '-o', str(tmp_path / 'b')]!r}; from megrez.compile.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", block + run], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    before, after = manifest_of(staged), manifest_of(tmp_path / "b")
    assert (before["engine"], after["engine"]) == ("portable", "tensorrt")
    assert after["kv_cache"]["bytes_per_token"] * 2 == before["kv_cache"]["bytes_per_token"]
    assert after["provenance"]["calibration"] == before["provenance"]["calibration"]
    assert (before["measured"]["of"], after["measured"]["of"]) == ("bundle", "simulation")
    assert after["provenance"]["quantization"] == before["provenance"]["quantization"]
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (staged / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    open_bundle(tmp_path / "b", verify=True)


def test_what_cannot_be_asked_of_a_staged_bundle(staged: Path, megrez_compile: Any, tmp_path: Path) -> None:
    output = ("-o", tmp_path / "b")
    for options, said in (
        (("--target", "trt-fp8", *output), "was staged for trt-int8, not trt-fp8: leave --target out"),
        (("--context", 9, *output), "is a staged bundle, --context was settled when it was written: leave it out"),
        (("-o", staged), "is the staged bundle itself: choose another -o"),
        (("--arch", "orin", *output), "cannot build ahead of time for sm_87 (orin)"),
    ):
        done = megrez_compile(staged, *options)
        assert done.code == 2 and said in done.err and done.err.count("error: ") == 1, done.err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target", "trt-fp8", "--arch", "a100"), "trt-fp8 needs sm_89 or later, not a100, a30 (sm_80): "),
        (("--target", "trt-fp16", "--arch", "rtx-4080ti"), "unknown device 'rtx-4080ti': did you mean rtx-4090? "),
        (("--target", "trt-fp16", "--arch", "h100"), "cannot build ahead of time for sm_90 (h100, h200, gh200)"),
        (("--target", "trt-fp16", "--batch", 0), "--batch is 0: give at least 1"),
        # Key and value, of 2 layers, 2 heads of 64 values of 2 bytes: 1024 bytes a token, 512 tokens.
        (
            ("--target", "trt-fp16", "--batch", 10**9),
            "--batch is 1000000000: the KV cache of 1000000000 sequences of 512 tokens takes 524288.0 GB "
            "(0.524 MB each) and the largest GPU has 288 GB: choose a smaller --batch or --context",
        ),
        (("--target", "trt-fp16", "--context", 1), "--context is 1: TensorRT omits the mask of a cache of one"),
        (("--target", "trt-fp8", "--context", 1), "--context is 1: TensorRT omits the mask of a cache of one"),
        (("--target", "trt-fp16", "--hardware-compatible"), "--hardware-compatible is TensorRT's, TensorRT-RTX builds"),
        (("--target", "cpu-int4", "--batch", 2), "are for TensorRT engines, cpu-int4 builds none"),
        (("--target", "cpu-int4", "--arch", "orin"), "--arch names NVIDIA devices, cpu-int4 is for any CPU"),
        (("--target", "trt-fp8", "--stage", "onnx", "--batch", 2), "are for TensorRT engines, trt-fp8 builds none"),
        ((), "--target is missing: name one of those that  megrez-compile --list-targets  shows"),
    ],
)
def test_what_cannot_be_built_is_refused_before_any_work(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, options: tuple[object, ...], said: str
) -> None:
    done = megrez_compile(checkpoint_of(**SHAPE), *options, "-o", tmp_path / "b")
    assert done.code == 2 and said in done.err and done.err.startswith("error: ")


def test_a_library_that_is_not_installed_is_named_with_its_extra(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = megrez_compile(checkpoint_of(**SHAPE), "--target", "trt-fp16", "-o", tmp_path / "b")
    assert (done.code, done.err) == (
        1,
        "error: building an engine needs tensorrt_rtx, which is not installed: run  "
        "pip install 'megrez-compile[rtx]'\n",
    )


def test_the_gpu_at_hand_must_be_there(checkpoint_of: Any, megrez_compile: Any, tmp_path: Path) -> None:
    if not no_gpu():
        pytest.skip("a GPU is at hand")
    done = megrez_compile(checkpoint_of(**SHAPE), "--target", "trt-fp16", "--arch", "native", "-o", tmp_path / "b")
    assert done.code == 1 and done.err.startswith("error: no NVIDIA GPU can be used here (cudaGetDeviceCount")
    assert not (tmp_path / "b").exists()


def test_the_gpu_at_hand_is_built_for_and_no_other(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for a GPU that is not there, TensorRT-RTX must not build for those it knows."""
    if not no_gpu():
        pytest.skip("a GPU is at hand")
    monkeypatch.setattr("megrez.compile.backends.tensorrt.capability_at_hand", lambda library: 90)
    options = ("--target", "trt-fp16", "--arch", "native", "--context", 64)
    done = megrez_compile(checkpoint_of(**SHAPE), *options, "-o", tmp_path / "b")
    assert done.code == 1 and "Traceback" not in done.err, done.err
    assert not (tmp_path / "b").exists()


def test_a_gpu_at_hand_that_lacks_the_numbers_is_refused(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megrez.compile.backends.tensorrt.capability_at_hand", lambda library: 87)
    done = megrez_compile(checkpoint_of(**SHAPE), "--target", "trt-fp8", "--arch", "native", "-o", tmp_path / "b")
    assert done.code == 2 and "trt-fp8 needs sm_89 or later, not orin (sm_87)" in done.err


def test_random_weights_are_built_without_a_text(checkpoint_of: Any, megrez_compile: Any, tmp_path: Path) -> None:
    config = checkpoint_of(**ONE_LAYER) / "config.json"
    options = ("--dummy-weights", "--target", "trt-int8", "--context", 64, "--arch", "sm_86")
    done = megrez_compile(config, *options, "-o", tmp_path / "b")
    assert done.code == 0 and "calibrating" not in done.err, done.err
    manifest = manifest_of(tmp_path / "b")
    assert manifest["provenance"]["weights"] == "dummy" and manifest["measured"] is None
