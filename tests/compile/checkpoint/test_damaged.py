"""Odd values in headers and configs: one line that names the file, whatever is in it, and never another exception."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megrez.compile.checkpoint import open_checkpoint
from megrez.runtime.errors import BundleError, CheckpointError
from megrez.runtime.manifest import Manifest
from tests.gguf_models import make_gguf
from tests.models import make_checkpoint

NORM = "model.norm.weight"
ODD: list[Any] = [None, True, -1, 1 << 70, 0.5, float("nan"), float("inf"), "x", "", [], [[1]], [-3, 4], {}, {"a": [1]}]
DEEP = "[" * 50_000 + "]" * 50_000
BORDER = "[" * 900 + "]" * 900


def refusal(model: Path) -> str | None:
    try:
        open_checkpoint(str(model)).check()
    except CheckpointError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def edit_header(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    table = json.loads(data[8:end])
    change(table)
    header = json.dumps(table).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "hf", layers=1)


@pytest.mark.parametrize("field", ["dtype", "shape", "data_offsets"])
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_a_field_of_a_safetensors_header(folder: Path, field: str, value: Any) -> None:
    edit_header(folder, lambda table: table[NORM].update({field: value}))
    assert (refusal(folder) or "").find("model.safetensors") >= 0 or NORM in str(refusal(folder))


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_an_entry_of_a_safetensors_header(folder: Path, value: Any) -> None:
    edit_header(folder, lambda table: table.update({NORM: value}))
    assert f"model.safetensors is damaged: {NORM} has no valid dtype, shape and data_offsets" in str(refusal(folder))


def test_offsets_that_overlap_or_leave_a_gap(folder: Path) -> None:
    def overlap(table: dict[str, Any]) -> None:
        table["model.layers.0.input_layernorm.weight"]["data_offsets"] = table[NORM]["data_offsets"]

    edit_header(folder, overlap)
    assert "overlaps the tensor before it" in str(refusal(folder)) or "behind a gap" in str(refusal(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("value", [DEEP, BORDER], ids=["deep", "at the border"])
def test_deeply_nested_json(folder: Path, name: str, value: str) -> None:
    (folder / name).write_text('{"rope_scaling": ' + value + "}")
    assert name in str(refusal(folder))


def test_a_deeply_nested_header_and_manifest(folder: Path) -> None:
    header = ('{"a": ' + DEEP + "}").encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "model.safetensors" in str(refusal(folder))
    with pytest.raises(BundleError, match=r"manifest\.json is not JSON"):
        Manifest.from_json('{"schema_version": ' + DEEP + "}")


def test_any_value_in_config_json_is_taken_or_named(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    random = np.random.default_rng(0)
    for key in config:
        for at in random.choice(len(ODD), 5, replace=False):
            path.write_text(json.dumps({**config, key: ODD[at]}))
            refusal(folder)


def test_any_value_in_the_text_files_is_taken_or_named(folder: Path) -> None:
    for name in ("tokenizer_config.json", "generation_config.json"):
        path = folder / name
        stated = json.loads(path.read_text())
        more = ("extra_special_tokens", "added_tokens_decoder", "temperature", "min_p", "num_beams", "top_k")
        for key in (*stated, *more):
            for value in ODD:
                path.write_text(json.dumps({**stated, "do_sample": True, key: value}))
                refusal(folder)
        path.write_text(json.dumps(stated))


GGUF_ODD: list[Any] = [True, 7, -1.5, float("nan"), float("inf"), "x", [1, 2], [0.5], ["a"], [True]]
GGUF_KEYS = (
    *("general.architecture", "general.alignment", "split.count", "llama.block_count", "llama.expert_count"),
    *("llama.attention.head_count", "llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base"),
    *("llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.rope.dimension_count", "llama.context_length"),
    *("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.merges"),
    *("tokenizer.ggml.token_type", "tokenizer.ggml.scores", "tokenizer.ggml.eos_token_id", "tokenizer.chat_template"),
    *("tokenizer.ggml.add_bos_token", "general.sampling.temp", "general.sampling.top_k", "general.sampling.mirostat"),
)


@pytest.mark.parametrize("key", GGUF_KEYS)
def test_any_value_in_gguf_metadata_is_taken_or_named(folder: Path, key: str) -> None:
    path = folder.parent / "t.gguf"
    for value in GGUF_ODD:
        told = refusal(make_gguf(path, folder, metadata={key: value}))
        assert told is None or "t.gguf" in told or key.rpartition(".")[2] in told


def test_gguf_arrays_of_arrays_and_overlaps(tmp_path: Path) -> None:
    path = tmp_path / "t.gguf"
    nested = struct.pack("<QsIIQ", 1, b"k", 9, 9, 1)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + nested + bytes(64))
    assert "array of arrays" in str(refusal(path))
    entries = b"".join(struct.pack("<QsIQIQ", 1, name, 1, 32, 0, 0) for name in (b"a", b"b"))
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + entries + bytes(512))
    assert "a overlaps b" in str(refusal(path))


def test_changed_bytes_in_headers_are_taken_or_named(folder: Path) -> None:
    gguf = make_gguf(folder.parent / "t.gguf", folder)
    random = np.random.default_rng(0)
    for path, model in ((folder / "model.safetensors", folder), (gguf, gguf)):
        whole = path.read_bytes()
        header = min(len(whole), 20_000 if model is gguf else 8 + int.from_bytes(whole[:8], "little"))
        for _ in range(150):
            data = bytearray(whole)
            for at in random.integers(0, header, random.integers(1, 4)):
                data[at] = random.integers(256)
            path.write_bytes(data)
            refusal(model)
        path.write_bytes(whole)
