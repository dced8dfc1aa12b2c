"""`megrez calibrate` as a user meets it: what its scales hold, that builds are the same with them, what goes wrong."""

import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from megrez.calibration.layerwise import calibrate_layers
from megrez.calibration.results.record import read_record
from megrez.compile.checkpoint import open_checkpoint
from megrez.runtime.bundle import open_bundle
from tests.compile.test_cli import assert_one_error, names, poisoned
from tests.conftest import Done
from tests.forks import COMPILER, Forked, forks
from tests.gguf_models import make_gguf
from tests.models import make_checkpoint

SLOW = str(Path(__file__).parents[1] / "slow_calibrate.py")
TARGETS = {"int8": "trt-int8", "fp8": "trt-fp8", "int4": "trt-int4"}
TEXT = ("--calib-samples", 2, "--calib-tokens", 48, "--fidelity-tokens", 96)
BUILT = ("model.onnx", "model.onnx.data")


@pytest.fixture
def run(megrez: Any) -> Callable[..., Done]:
    def run(*arguments: object) -> Done:
        code, out, err = megrez("calibrate", *arguments)
        return Done(code=code, out=out, err=err)

    return run


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("scheme", TARGETS)
def test_what_the_scales_hold(checkpoint_of: Any, run: Any, tmp_path: Path, scheme: str) -> None:
    folder, scales = checkpoint_of(), tmp_path / "new" / "scales.json"
    done = run(folder, "--scheme", scheme, "-o", scales, *TEXT, "--algorithm", "awq+gptq")
    assert done.code == 0, done.err
    assert f"megrez-compile MODEL --target {TARGETS[scheme]} --scales {scales}" in done.out
    record = read_record(scales)
    assert (record.target, record.algorithm) == (TARGETS[scheme], "awq+gptq")
    assert record.input_type == {"int8": "int8", "fp8": "fp8", "int4": None}[scheme]
    assert (record.model, record.model_sha256) == (folder.name, open_checkpoint(str(folder)).fingerprint())
    text = record.text
    assert text.source.startswith("pydoc_data.topics") and len(text.sha256) == 64
    assert (text.samples, text.tokens, text.seed) == (2, 48, None)
    groups = {f"model.layers.{layer}.{group}" for layer in (0, 1) for group in ("qkv", "o", "gate_up", "down")}
    assert set(record.groups) == groups
    for group in record.groups.values():
        assert (group.input_scale is None) == (scheme == "int4") and 0 <= group.relative_error < 0.2
        assert group.input_scale is None or 0 < group.input_scale < 1
    assert record.fidelity is not None and record.fidelity.tokens == 96 and 0 < record.fidelity.kl_mean < 0.5
    assert len(record.files) == 2
    for file in record.files:
        assert hashlib.sha256((scales.parent / file.path).read_bytes()).hexdigest() == file.sha256
    assert {*tree(scales.parent)} == {"scales.json", *(file.path for file in record.files)}


def test_the_text_is_what_its_hash_says(checkpoint_of: Any, run: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("the land and all in it; " * 99)
    found = []
    for name, seed in (("a", ()), ("same", ()), ("drawn", ("--calib-seed", 5))):
        options = ("--calib", tmp_path / "mine.txt", "--algorithm", "rtn", *TEXT, *seed)
        assert run(checkpoint_of(), "--scheme", "fp8", "-o", tmp_path / name, *options).code == 0
        found.append(read_record(tmp_path / name))
    assert found[0].text == found[1].text != found[2].text
    assert (found[2].text.seed, found[2].text.source) == (5, "mine.txt")
    assert found[0].groups == found[1].groups != found[2].groups


@pytest.mark.parametrize(("scheme", "head"), [("int8", True), ("fp8", False), ("int4", True)])
def test_a_build_from_scales_is_the_build_that_calibrates(
    checkpoint_of: Any, run: Any, megrez_compile: Any, tmp_path: Path, scheme: str, head: bool
) -> None:
    folder, scales = checkpoint_of(biases=True), tmp_path / "s" / "scales.json"
    options = (*TEXT, *(("--quantize-head",) if head else ()))
    build = (folder, "--target", TARGETS[scheme], "--stage", "onnx", *options)
    assert run(folder, "--scheme", scheme, "-o", scales, *options).code == 0
    before = tree(scales.parent)
    assert megrez_compile(*build, "-o", tmp_path / "from", "--scales", scales).code == 0
    assert megrez_compile(*build, "-o", tmp_path / "own").code == 0
    ours, own = tree(tmp_path / "from"), tree(tmp_path / "own")
    assert [ours[name] == own[name] for name in BUILT] == [True, True]
    assert tree(scales.parent) == before and names(tmp_path) == ["from", "own", "s"]
    record = read_record(scales)
    first, second = (open_bundle(tmp_path / name).manifest for name in ("from", "own"))
    stated = first.provenance.calibration
    assert stated is not None and stated == second.provenance.calibration
    assert (stated.sha256, stated.samples) == (record.text.sha256, 2)
    quantization = first.provenance.quantization
    assert quantization is not None and quantization.algorithm == record.algorithm
    assert first.measured is not None and second.measured is not None
    # Two passes of the full-precision model, in groups of other samples.
    assert first.measured.fidelity.kl_mean == pytest.approx(second.measured.fidelity.kl_mean, rel=1e-3)
    assert first.measured.fidelity.kl_mean == pytest.approx(record.fidelity.kl_mean, rel=0.1)  # type: ignore[union-attr]


def test_a_cpu_target_is_calibrated_too(checkpoint_of: Any, run: Any, megrez_compile: Any, tmp_path: Path) -> None:
    folder, scales = checkpoint_of(family="qwen2", tied=True), tmp_path / "s.json"
    assert run(folder, "--target", "cpu-int4", "-o", scales, *TEXT).code == 0
    build = (folder, "--target", "cpu-int4", *TEXT)
    assert megrez_compile(*build, "-o", tmp_path / "from", "--scales", scales).code == 0
    assert megrez_compile(*build, "-o", tmp_path / "own").code == 0
    assert [(tmp_path / "from" / n).read_bytes() == (tmp_path / "own" / n).read_bytes() for n in BUILT] == [True, True]


def test_what_a_failed_build_calibrated_is_used_again(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = (checkpoint_of(), "--target", "trt-fp8", "--stage", "onnx", *TEXT, "--algorithm", "rtn")
    assert megrez_compile(*build, "-o", tmp_path / "undisturbed").code == 0
    walks: list[int] = []

    def counting(*arguments: Any, **named: Any) -> Any:
        walks.append(1)
        return calibrate_layers(*arguments, **named)

    monkeypatch.setattr("megrez.compile.calibrate.stage.calibrate_layers", counting)
    with monkeypatch.context() as full:
        full.setattr("megrez.engines.onnx_files.DATA_FILE", "/dev/full")
        assert_one_error(megrez_compile(*build, "-o", tmp_path / "b"), 1, "is full")
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir() and path.name != "undisturbed")
    assert names(tmp_path) == sorted([folder.name, "b.calibration.json", "undisturbed"])
    (tmp_path / "b.calibration.0123456789ab").mkdir()  # of a request that was given up
    assert megrez_compile(*build, "-o", tmp_path / "b").code == 0
    assert (len(walks), names(tmp_path)) == (1, ["b", "undisturbed"])
    first, second = (tree(tmp_path / name) for name in ("undisturbed", "b"))
    assert [first[name] == second[name] for name in BUILT] == [True, True]


def request(folder: Path, scales: Path) -> tuple[object, ...]:
    return (folder, "--scheme", "fp8", "--algorithm", "awq+gptq", "-o", scales, *TEXT)


@pytest.fixture
def saving(checkpoint_of: Any, tmp_path: Path) -> Iterator[tuple[Forked, Path]]:
    """A calibration that has stored two of three layers and waits, and where its scales will be."""
    scales = tmp_path / "s" / "scales.json"
    process = forks(COMPILER).start(SLOW, ["calibrate", *request(checkpoint_of(layers=3), scales)])
    assert process.stdout is not None and process.stdout.readline() == "saved\n"
    yield process, scales
    process.kill()
    process.wait()


def test_a_killed_calibration_goes_on_where_it_was(
    saving: tuple[Forked, Path], checkpoint_of: Any, run: Any, tmp_path: Path
) -> None:
    process, scales = saving
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert not scales.exists()
    kept = {path: path.stat().st_mtime_ns for path in scales.parent.rglob("*.safetensors")}
    assert len(kept) == 2
    again = run(*request(checkpoint_of(layers=3), scales))
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    whole = run(*request(checkpoint_of(layers=3), tmp_path / "whole" / "scales.json"))
    assert whole.code == 0, whole.err
    assert tree(scales.parent) == tree(tmp_path / "whole")
    assert len(read_record(scales).files) == 3 == len(tree(scales.parent)) - 1


def test_ctrl_c_keeps_what_is_done(saving: tuple[Forked, Path]) -> None:
    process, scales = saving
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "") and "Traceback" not in err and "error" not in err
    (state,) = scales.parent.iterdir()
    progress = json.loads((state / "progress.json").read_text())
    assert progress["layers"] == 2 and names(state) == [
        "000.safetensors",
        "001.safetensors",
        "hidden-002.npy",
        "progress.json",
    ]


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        (b"", (), "text.txt holds no text: give another file"),
        (b" \xff\xfe\x00", (), "cannot be read as UTF-8 text"),
        (b"one\0two", (), "is a binary file"),
        (None, (), "cannot be read as UTF-8 text (No such file or directory)"),
        (b"too short", (), "2 samples of 48 tokens were requested and text.txt has 9 tokens, enough for 0"),
        (b"the land " * 99, ("--calib-tokens", 513), "--calib-tokens is 513, the context is 512"),
        (b"the land " * 99, ("--calib-tokens", 1), "a sample takes at least 2 tokens"),
        (b"the land " * 99, ("--calib-samples", 0), "calibrate on at least 1"),
        (b"the land " * 99, ("--calib-seed", -1), "give 0 or more"),
        (b"the land " * 99, ("--fidelity-tokens", -1), "--fidelity-tokens is -1: measure on 0 or more"),
    ],
)
@pytest.mark.parametrize("build", [False, True])
def test_a_text_that_cannot_be_used(
    checkpoint_of: Any,
    run: Any,
    megrez_compile: Any,
    tmp_path: Path,
    text: bytes | None,
    options: tuple[Any, ...],
    said: str,
    build: bool,
) -> None:
    (tmp_path / "in").mkdir()
    if text is not None:
        (tmp_path / "in" / "text.txt").write_bytes(text)
    given = ("-o", tmp_path / "b", *TEXT, "--calib", tmp_path / "in" / "text.txt", *options)
    target = ("--target", "cpu-int4") if build else ("--scheme", "int8")
    done = (megrez_compile if build else run)(checkpoint_of(), *target, *given)
    assert_one_error(done, 2, said)
    assert names(tmp_path) == ["in"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "missing or given twice: give one of --scheme and --target"),
        (("--scheme", "int8", "--target", "cpu-int4"), "given twice: give one of --scheme and --target"),
        (("--target", "cpu-int5"), "unknown target 'cpu-int5'"),
        (("--target", "cpu-fp32"), "cpu-fp32 quantises nothing of"),
        (("--target", "cpu-int8", "--quantize-head"), "--quantize-head is for targets with an unquantised LM head"),
    ],
)
def test_nothing_to_calibrate_for(
    checkpoint_of: Any, run: Any, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    assert_one_error(run(checkpoint_of(), *options, "-o", tmp_path / "s.json"), 2, said)
    assert names(tmp_path) == []


def test_a_model_without_tokenizer(checkpoint_of: Any, run: Any, megrez_compile: Any, tmp_path: Path) -> None:
    folder, said = checkpoint_of(tokenizer=False), "the checkpoint has no tokenizer, so no text can calibrate it"
    output = ("-o", tmp_path / "b")
    assert_one_error(run(folder, "--scheme", "int4", *output), 2, said)
    assert_one_error(megrez_compile(folder, "--target", "cpu-int4", "--algorithm", "gptq", *output), 2, said)
    assert_one_error(megrez_compile(folder, "--target", "trt-int8", "--stage", "onnx", *output), 2, said)
    assert names(tmp_path) == []
    mine = tmp_path / "mine.txt"
    mine.write_text("one two three four " * 100)
    assert_one_error(megrez_compile(folder, "--target", "cpu-int4", "--calib", mine, *output), 2, said)
    mine.unlink()
    assert names(tmp_path) == []
    assert megrez_compile(folder, "--target", "cpu-int4", *output).code == 0
    manifest = open_bundle(tmp_path / "b").manifest
    assert (manifest.provenance.calibration, manifest.measured) == (None, None)


def test_a_large_model_is_calibrated_when_asked(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = safetensors.numpy.load_file(checkpoint_of() / "model.safetensors")
    parameters = sum(tensor.size for tensor in weights.values())
    mine = tmp_path / "mine.txt"
    mine.write_text("one two three four " * 100)

    def algorithm(bundle: str, *options: object) -> tuple[str, str]:
        done = megrez_compile(checkpoint_of(), "--target", "cpu-int4", *TEXT, *options, "-o", tmp_path / bundle)
        assert done.code == 0
        stated = open_bundle(tmp_path / bundle).manifest.provenance
        assert stated.quantization is not None
        assert (stated.calibration is None) == (stated.quantization.algorithm == "rtn")
        return stated.quantization.algorithm, done.err

    hint = "--algorithm gptq takes much longer and is closer to the checkpoint"
    monkeypatch.setattr("megrez.compile.calibrate.prepare.CALIBRATED_BY_DEFAULT", parameters)
    chosen, told = algorithm("small")
    assert chosen == "gptq" and hint not in told
    monkeypatch.setattr("megrez.compile.calibrate.prepare.CALIBRATED_BY_DEFAULT", parameters - 1)
    chosen, told = algorithm("large")
    assert chosen == "rtn" and hint in told
    assert open_bundle(tmp_path / "large").manifest.measured is not None
    assert algorithm("asked", "--algorithm", "gptq")[0] == "gptq"
    assert algorithm("given", "--calib", mine)[0] == "gptq"


def test_scales_that_cannot_be_written(
    checkpoint_of: Any, run: Any, megrez_compile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    done = run(checkpoint_of(), "--scheme", "int8", "-o", tmp_path, *TEXT)
    assert_one_error(done, 2, f"-o {tmp_path} is a folder: name the file to write")
    done = run(checkpoint_of(), "--scheme", "fp8", "-o", tmp_path / "file" / "s.json", *TEXT)
    assert_one_error(done, 1, f"the scales {tmp_path / 'file' / 's.json'} cannot be written (File exists)")

    def refuse(*arguments: object, **named: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    build = ("--target", "trt-fp8", "--stage", "onnx", "-o", tmp_path / "b", *TEXT)
    assert_one_error(megrez_compile(checkpoint_of(), *build), 1, "cannot be written (Permission denied)")
    assert names(tmp_path) == ["file"]


@pytest.fixture(scope="module")
def folder_of_scales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scales")


@pytest.fixture
def fp8_scales(checkpoint_of: Any, run: Any, folder_of_scales: Path) -> Path:
    """Calibrated by the first test that asks."""
    if not (folder_of_scales / "s.json").exists():
        done = run(*request(checkpoint_of(), folder_of_scales / "s.json"))
        assert done.code == 0, done.err
    return folder_of_scales


def change(**fields: Any) -> Callable[[Path], None]:
    def write(scales: Path) -> None:
        scales.write_text(json.dumps(json.loads(scales.read_text()) | fields))

    return write


def flip_last_byte(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def first_file(scales: Path) -> Path:
    return scales.parent / read_record(scales).files[0].path


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda scales: scales.unlink(), "cannot be read as scales ("),
        (lambda scales: scales.write_bytes(b"\xff\0"), "cannot be read as scales ("),
        (lambda scales: scales.write_text("[]"), "are not complete"),
        (lambda scales: first_file(scales).unlink(), "000.safetensors is missing: copy them again or calibrate again"),
        (lambda scales: os.truncate(first_file(scales), 999), "000.safetensors has 999 bytes, expected "),
        (
            lambda scales: flip_last_byte(first_file(scales)),
            "000.safetensors changed since they were written: copy them",
        ),
        (change(schema_version=99), "has schema version 99, this version of megrez reads 4"),
        (change(model_sha256="0" * 64), "belongs to another model"),
        (change(target="trt-int8"), "was calibrated for trt-int8, not trt-fp8: calibrate for trt-fp8"),
        (change(new="field"), "new"),
        (change(points=3), "points"),
    ],
)
def test_scales_that_cannot_be_used(
    checkpoint_of: Any, megrez_compile: Any, fp8_scales: Path, tmp_path: Path, spoil: Any, said: str
) -> None:
    shutil.copytree(fp8_scales, tmp_path / "s")
    spoil(tmp_path / "s" / "s.json")
    build = ("--target", "trt-fp8", "--stage", "onnx", "-o", tmp_path / "b", "--scales", tmp_path / "s" / "s.json")
    assert_one_error(megrez_compile(checkpoint_of(), *build), 2, said)
    assert names(tmp_path) == ["s"]


def test_scales_of_another_request(checkpoint_of: Any, run: Any, megrez_compile: Any, tmp_path: Path) -> None:
    """Formats that the scales do not hold would be rounded anew, without what was folded into the norms."""
    scales = tmp_path / "s.json"
    assert run(checkpoint_of(), "--scheme", "int4", "--algorithm", "awq", "-o", scales, *TEXT).code == 0
    build = ("--stage", "onnx", "-o", tmp_path / "b", "--scales", scales, "--fidelity-tokens", 0)
    for folder, options, said in (
        (checkpoint_of(seed=1), ("--target", "trt-int4"), "belongs to another model"),
        (checkpoint_of(), ("--target", "trt-int8"), "was calibrated for trt-int4, not trt-int8"),
        (checkpoint_of(), ("--target", "trt-int4", "--block-size", 16), "leave --block-size out, give --quantize-head"),
        (checkpoint_of(), ("--target", "trt-int4", "--algorithm", "awq"), "scales have their algorithm: leave"),
    ):
        assert_one_error(megrez_compile(folder, *options, *build), 2, said)
    assert not (tmp_path / "b").exists()


def test_scales_without_the_head_that_is_asked_for(
    checkpoint_of: Any, megrez_compile: Any, fp8_scales: Path, tmp_path: Path
) -> None:
    build = ("--target", "trt-fp8", "--stage", "onnx", "-o", tmp_path / "b", "--scales", fp8_scales / "s.json")
    done = megrez_compile(checkpoint_of(), *build, "--quantize-head")
    assert_one_error(done, 2, "does not hold lm_head.weight as fp8 per channel: leave --block-size out, give ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target", "cpu-int8", "--stage", "onnx"), "cpu-int8 builds none: leave it out"),
        (("--target", "cpu-int8", "--quantize-head"), "--quantize-head is for targets with an unquantised LM head"),
        (
            ("--target", "trt-fp8", "--stage", "onnx", "--scales", "s", "--algorithm", "rtn"),
            "scales have their algorithm: leave",
        ),
        (("--target", "cpu-int4", "--context", 64, "--calib-tokens", 65), "--calib-tokens is 65, the context is 64"),
    ],
)
def test_options_that_do_not_go_together(
    checkpoint_of: Any, megrez_compile: Any, tmp_path: Path, options: tuple[Any, ...], said: str
) -> None:
    assert_one_error(megrez_compile(checkpoint_of(), "-o", tmp_path / "b", *options), 2, said)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.embed_tokens.weight", np.nan),
        ("model.layers.1.mlp.down_proj.weight", np.inf),
        ("lm_head.weight", np.nan),
        ("lm_head.weight", np.inf),
    ],
)
def test_weights_that_are_no_numbers(run: Any, megrez_compile: Any, tmp_path: Path, name: str, value: float) -> None:
    folder = poisoned(make_checkpoint(tmp_path / "model"), name)
    edit(folder, name, lambda weight: weight.__setitem__((slice(None), 3), value))
    options = (*TEXT, "--algorithm", "rtn", "-o")
    assert_one_error(run(folder, "--scheme", "fp8", *options, tmp_path / "s.json"), 1, name, "NaN or an infinity")
    build = ("--target", "trt-fp8", "--stage", "onnx", *options, tmp_path / "b")
    assert_one_error(megrez_compile(folder, *build), 1, name, "NaN or an infinity")
    assert names(tmp_path) == ["model"]


def edit(folder: Path, name: str, change: Callable[[Any], None]) -> None:
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    change(tensors[name])
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("target", "algorithm"),
    [("trt-int8", "smoothquant"), ("trt-fp8", "gptq"), ("trt-int4", "awq+gptq"), ("cpu-int4", "gptq")],
)
def test_channels_of_zeros(megrez_compile: Any, tmp_path: Path, target: str, algorithm: str) -> None:
    folder = make_checkpoint(tmp_path / "model")

    def silence(values: Any) -> None:
        values[..., 5] = 0

    edit(folder, "model.layers.0.input_layernorm.weight", silence)  # an input that is always zero
    edit(folder, "model.layers.0.mlp.up_proj.weight", lambda weight: weight.__setitem__(slice(3, 9), 0))
    edit(folder, "model.layers.1.self_attn.o_proj.weight", silence)
    edit(folder, "model.layers.1.mlp.down_proj.weight", lambda weight: weight.fill(0))
    stage = ("--stage", "onnx") if target.startswith("trt") else ()
    build = ("--target", target, *stage, "--algorithm", algorithm, *TEXT, "-o", tmp_path / "b")
    done = megrez_compile(folder, *build)
    assert done.code == 0 and "Warning" not in done.err, done.err
    assert re.search(r"\d+ channels are zero on all of the calibration data: they stay zero", done.err)
    measured = open_bundle(tmp_path / "b").manifest.measured
    assert measured is not None and 0 < measured.fidelity.kl_mean < 0.2


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_blocks_of_a_gguf_are_carried_over_to_the_cpu(
    checkpoint_of: Any, run: Any, megrez_compile: Any, tmp_path: Path, kind: str
) -> None:
    path = make_gguf(tmp_path / "tiny.gguf", checkpoint_of(), kind=kind)
    assert megrez_compile(path, "--target", "cpu-int4", "-o", tmp_path / "b", *TEXT).code == 0
    manifest = open_bundle(tmp_path / "b").manifest
    assert manifest.provenance.calibration is None and manifest.measured is not None
    assert manifest.measured.fidelity.kl_mean < 0.05  # the file's own blocks, and the rounding of activations
    assert_one_error(run(path, "--target", "cpu-int4", "-o", tmp_path / "s.json"), 2, "cpu-int4 quantises nothing of")


def test_blocks_of_a_gguf_are_calibrated_for_a_gpu(checkpoint_of: Any, megrez_compile: Any, tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "tiny.gguf", checkpoint_of(), kind="Q4_1")
    build = ("--target", "trt-int4", "--stage", "onnx", "-o", tmp_path / "b", *TEXT)
    assert megrez_compile(path, *build).code == 0
    stated = open_bundle(tmp_path / "b").manifest.provenance
    assert stated.calibration is not None and stated.quantization is not None
    assert (stated.quantization.algorithm, stated.quantization.keeps_blocks) == ("gptq", False)
