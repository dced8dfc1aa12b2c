"""Bundles list what they hold, replace nothing but bundles, and a failed write says why and leaves nothing."""

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megrez.compile.bundle.describe import Content, describe
from megrez.compile.bundle.output import check_output, check_space
from megrez.compile.bundle.writer import new_bundle
from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.checkpoint.protocol import Checkpoint
from megrez.compile.checkpoint.rotated import rotate_for
from megrez.engines.targets import Target, find_target
from megrez.runtime.bundle import open_bundle
from megrez.runtime.errors import BundleError, UsageError
from megrez.runtime.manifest import FILE_NAME, Quantization, Tokens
from tests.gguf_models import make_gguf

TARGET = find_target("cpu-int4")


def write(output: Path, folder: Path, build: Callable[[Path], object] | None = None) -> None:
    def engine_files(into: Path) -> None:
        (into / "model.onnx").write_bytes(b"graph")
        (into / "model.onnx.data").write_bytes(bytes(5000))

    checkpoint = open_checkpoint(str(folder))
    content = Content(checkpoint=checkpoint, target=TARGET, context=64, weights="checkpoint", record=None)
    with new_bundle(output) as new:
        (build or engine_files)(new.folder)
        new.finish(describe(content), checkpoint.text, None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_manifest_lists_every_file_with_size_and_hash(checkpoint_of: Any, tmp_path: Path) -> None:
    write(tmp_path / "b", checkpoint_of())
    data = json.loads((tmp_path / "b" / "manifest.json").read_text())
    expected = {
        name: (len(raw), hashlib.sha256(raw).hexdigest())
        for name, raw in contents(tmp_path / "b").items()
        if name != "manifest.json"
    }
    assert set(expected) == {"model.onnx", "model.onnx.data", "tokenizer.json", "chat_template.jinja"}
    assert {file["path"]: (file["size"], file["sha256"]) for file in data["files"]} == expected
    open_bundle(tmp_path / "b", verify=True)


def test_the_manifest_tells_shape_cache_tokens_and_provenance(checkpoint_of: Any, tmp_path: Path) -> None:
    folder = checkpoint_of(family="qwen2")
    write(tmp_path / "b", folder)
    data = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert data["architecture"] == {
        "model_type": "qwen2",
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 320,
    }
    # Key and value, of 2 layers, 2 heads of 32 numbers of 4 bytes.
    assert data["kv_cache"] == {
        "dtype": "float32",
        "bytes_per_token": 2 * 2 * 2 * 32 * 4,
        "scales": None,
        "keys": None,
        "fidelity": [],
    }
    assert data["tokens"] == {"bos": None, "pad": 259, "stop": [258, 256], "add_bos": False}
    assert (data["target"], data["engine"], data["context_length"]) == ("cpu-int4", "ort", 64)
    provenance = data["provenance"]
    assert (provenance["source"], provenance["weights"]) == (folder.name, "checkpoint")
    assert provenance["quantization"] == {
        "algorithm": "rtn",
        "projections": "int4 block 256 with zero points",
        "sensitive": "int8 block 128",
        "inputs": None,
        "activations": None,
        "embedding": "int8 block 128",
        "lm_head": "int4 block 256 with zero points",
        "keeps_blocks": False,
        "rotated": False,
    }
    assert {"megrez-compile", "torch", "onnxruntime"} <= set(provenance["tools"])
    assert not {"onnxruntime-qnn", "tensorrt-rtx-cu13"} & set(provenance["tools"])  # which are installed here


def quantization_of(target: Target, checkpoint: Checkpoint) -> Quantization | None:
    content = Content(checkpoint=checkpoint, target=target, context=64, weights="checkpoint", record=None)
    return describe(content).provenance.quantization


def test_the_manifest_tells_what_was_rotated_and_what_was_kept(checkpoint_of: Any, tmp_path: Path) -> None:
    found = quantization_of(TARGET, rotate_for(open_checkpoint(str(checkpoint_of())), TARGET))
    assert found is not None and (found.rotated, found.keeps_blocks) == (True, False)
    own = make_gguf(tmp_path / "m.gguf", checkpoint_of(), kind="Q4_0")
    found = quantization_of(TARGET, rotate_for(open_checkpoint(str(own)), TARGET))
    assert found is not None and (found.rotated, found.keeps_blocks) == (False, True)


def test_the_manifest_tells_what_is_not_quantised(checkpoint_of: Any) -> None:
    checkpoint = open_checkpoint(str(checkpoint_of()))
    assert quantization_of(find_target("trt-fp16"), checkpoint) is None
    found = quantization_of(find_target("trt-fp8"), checkpoint)
    assert found is not None
    assert (found.projections, found.sensitive, found.inputs) == ("fp8 per channel", "fp8 per channel", "fp8")
    assert (found.embedding, found.lm_head, found.activations) == (None, None, None)
    found = quantization_of(find_target("qnn-w8a16"), checkpoint)
    assert found is not None
    assert (found.activations, found.embedding) == ("uint16 per tensor, calibrated", "uint16")


def test_a_checkpoint_without_tokenizer_makes_a_bundle_without_text(checkpoint_of: Any, tmp_path: Path) -> None:
    write(tmp_path / "b", checkpoint_of(tokenizer=False))
    assert set(contents(tmp_path / "b")) == {"model.onnx", "model.onnx.data", "manifest.json"}
    assert open_bundle(tmp_path / "b").manifest.tokens.stop == ()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "the disk of {} is full: free some space or choose another -o"),
        (errno.EDQUOT, "the disk of {} is full: free some space or choose another -o"),
        (errno.EIO, "cannot write {}: Input/output error: choose another -o"),
        (None, "cannot write {}: Input/output error: choose another -o"),
    ],
)
@pytest.mark.parametrize("older", [False, True])
def test_a_write_that_fails_leaves_nothing_new(
    checkpoint_of: Any, tmp_path: Path, code: int | None, said: str, older: bool
) -> None:
    output = tmp_path / "b"
    if older:
        write(output, checkpoint_of())
    before = contents(output) if older else {}

    def fail(into: Path) -> None:
        (into / "model.onnx").write_bytes(b"half")
        raise OSError("Input/output error") if code is None else OSError(code, "Input/output error")

    with pytest.raises(BundleError) as caught:
        write(output, checkpoint_of(), fail)
    assert str(caught.value) == said.format(output)
    assert [path.name for path in tmp_path.iterdir()] == (["b"] if older else [])
    assert not older or contents(output) == before


def test_a_file_that_cannot_be_read_is_not_blamed_on_the_output(checkpoint_of: Any, tmp_path: Path) -> None:
    shard = tmp_path / "elsewhere" / "model-00002.safetensors"
    with pytest.raises(BundleError, match=rf"{shard} failed: No such file or directory: check that file"):
        write(tmp_path / "there" / "b", checkpoint_of(), lambda into: shard.read_bytes())


def test_while_it_is_written_nothing_there_opens(checkpoint_of: Any, tmp_path: Path) -> None:
    def look(into: Path) -> None:
        (into / "model.onnx").write_bytes(b"graph")
        for folder in (into, tmp_path / "b"):
            with pytest.raises(BundleError):
                open_bundle(folder)

    write(tmp_path / "b", checkpoint_of(), look)
    open_bundle(tmp_path / "b", verify=True)


def test_what_may_be_replaced(tmp_path: Path, checkpoint_of: Any) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "bundle", checkpoint_of())
    for name in ("new", "empty", "bundle"):
        check_output(tmp_path / name)
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / FILE_NAME).write_text('{"name": "somebody\'s web app"}')
    write(tmp_path / "noted", checkpoint_of())
    (tmp_path / "noted" / "notes.txt").write_text("mine")
    for name in ("file", "full", "web", "noted"):
        with pytest.raises(UsageError, match=rf"{name} exists and is not a bundle: choose another -o or remove it"):
            check_output(tmp_path / name)


def test_a_disk_too_small_is_told_before_work_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> Any:
        asked.append(path)
        return shutil._ntuple_diskusage(10**10, 0, 3 * 10**9)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", usage)
    check_space(tmp_path / "not" / "yet" / "there", 2_900_000_000)
    with pytest.raises(BundleError, match=r"the bundle needs 3\.1 GB and the disk of .*there has 3\.0 GB free: free"):
        check_space(tmp_path / "not" / "yet" / "there", 3_000_000_000)
    assert asked == [tmp_path, tmp_path]


def test_an_output_that_cannot_be_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for output, said in (
        (tmp_path / "file" / "b", "is not a folder that you can write to: choose another"),
        (tmp_path / "loop", r"cannot be used \(.*\): choose another"),
        (tmp_path / ("b" * 300), r"cannot be used \(.*\): choose another"),
    ):
        with pytest.raises(UsageError, match=said):
            check_output(output)


def test_a_bundle_that_would_not_open_is_not_written(checkpoint_of: Any, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(checkpoint_of()))
    content = Content(checkpoint=checkpoint, target=TARGET, context=64, weights="checkpoint", record=None)
    wrong = replace(describe(content), tokens=Tokens(bos=None, pad=None, stop=(320,), add_bos=False))
    said = "would not open: token id 320 is outside the vocabulary"
    with pytest.raises(BundleError, match=said), new_bundle(tmp_path / "b") as new:
        new.finish(wrong, None, None)
    assert not (tmp_path / "b").exists()
