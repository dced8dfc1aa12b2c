import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest

from megrez.runtime.bundle import open_bundle, sha256_of
from megrez.runtime.errors import BundleError


def test_a_whole_bundle_opens_and_finds_what_its_manifest_lists(make_bundle, byte_level):
    folder = make_bundle(tokenizer=byte_level)
    bundle = open_bundle(folder, verify=True)
    assert bundle.find("tokenizer.json") == folder / "tokenizer.json"
    assert bundle.size == sum(path.stat().st_size for path in folder.iterdir())
    (folder / "chat_template.jinja").write_text("not listed, so not part of the bundle")
    assert bundle.find("chat_template.jinja") is None


def test_sha256_of_agrees_with_hashlib_across_blocks(tmp_path):
    data = bytes(range(256)) * 9000
    (tmp_path / "f").write_bytes(data)
    assert sha256_of(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_every_missing_and_cut_file_is_named_with_both_sizes(make_bundle, byte_level):
    folder = make_bundle(tokenizer=byte_level)
    (folder / "tokenizer.json").unlink()
    (folder / "model.onnx").write_text("weigh")
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing; model\.onnx has 5 bytes, expected 7"):
        open_bundle(folder)


def test_a_file_that_grew_is_named(make_bundle):
    folder = make_bundle()
    (folder / "model.onnx").write_text("weights and more")
    with pytest.raises(BundleError, match=r"model\.onnx has 16 bytes, expected 7"):
        open_bundle(folder)


def test_only_verify_sees_a_changed_byte_and_names_both_hashes(make_bundle):
    folder = make_bundle()
    (folder / "model.onnx").write_text("Weights")
    open_bundle(folder)
    expected, found = (hashlib.sha256(text).hexdigest() for text in (b"weights", b"Weights"))
    with pytest.raises(BundleError, match=rf"model\.onnx has SHA-256 {found}, expected {expected}"):
        open_bundle(folder, verify=True)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda path: None, "there is no bundle at"),
        (lambda path: path.write_text("x"), "is a file"),
        (lambda path: path.mkdir(), r"has no manifest\.json"),
        (lambda path: (path.mkdir(), (path / "manifest.json").write_bytes(b"\xff\xfe")), "cannot be read"),
        (lambda path: (path.mkdir(), (path / "manifest.json").write_text("{")), "is not JSON"),
        (lambda path: (path.mkdir(), (path / "manifest.json").mkdir()), "cannot be read"),
    ],
)
def test_what_is_no_bundle_is_said_in_one_line(tmp_path: Path, prepare, said):
    prepare(tmp_path / "b")
    with pytest.raises(BundleError, match=said) as caught:
        open_bundle(tmp_path / "b")
    assert "\n" not in str(caught.value)


def test_a_file_path_cannot_leave_the_bundle(make_bundle, manifest):
    folder = make_bundle()
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"model.onnx"', '"../model.onnx"'))
    with pytest.raises(BundleError, match=re.escape("'../model.onnx' leaves the bundle")):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("sampling", {"temperature": -1.0}, "recommended temperature is -1.0"),
        ("sampling", {"top_k": -1}, "recommended top_k is -1"),
        ("sampling", {"top_p": 0.0}, "recommended top_p is 0.0"),
        ("sampling", {"repetition_penalty": 1e-39}, "recommended repetition_penalty is 1e-39"),
        ("tokens", {"bos": 267, "add_bos": True}, "token id 267 is outside the vocabulary"),
        ("kv_cache", {"dtype": "bogus"}, "the KV cache's dtype is 'bogus'"),
    ],
)
def test_a_manifest_that_nothing_could_run_is_refused(make_bundle, manifest, part, changes, said):
    changed = dataclasses.replace(getattr(manifest, part), **changes)
    folder = make_bundle(manifest=dataclasses.replace(manifest, **{part: changed}))
    with pytest.raises(BundleError, match=re.escape(said)):
        open_bundle(folder)


def test_a_bundle_of_before_there_were_kv_formats_opens(make_bundle, manifest):
    folder = make_bundle(manifest=dataclasses.replace(manifest, schema_version=4))
    data = json.loads((folder / "manifest.json").read_text())
    data["kv_cache"] = {"dtype": "float32", "bytes_per_token": 32}
    (folder / "manifest.json").write_text(json.dumps(data))
    assert open_bundle(folder).manifest.kv_cache == dataclasses.replace(manifest.kv_cache, dtype="float32")


def test_an_older_schema_is_refused_with_the_cure(make_bundle, manifest):
    folder = make_bundle(manifest=dataclasses.replace(manifest, schema_version=3))
    with pytest.raises(BundleError, match=r"schema version 3, this runtime reads 4 to \d+: compile it again"):
        open_bundle(folder)


def test_a_newer_schema_is_refused_with_the_cure(make_bundle, manifest):
    folder = make_bundle(manifest=dataclasses.replace(manifest, schema_version=99))
    with pytest.raises(BundleError, match=r"schema version 99.*pip install -U"):
        open_bundle(folder)
