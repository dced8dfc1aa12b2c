"""A Hugging Face folder reads as transformers reads it, and every damaged one says what is wrong with it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from megrez.compile.checkpoint.huggingface import HuggingFaceCheckpoint
from megrez.compile.checkpoint.tensors import expected_tensors
from megrez.compile.families.registry import families
from megrez.runtime.errors import CheckpointError
from tests.models import make_checkpoint


def open_folder(folder: Path) -> HuggingFaceCheckpoint:
    return HuggingFaceCheckpoint(folder, source="tiny")


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_folder(folder).check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    tensors = {**safetensors.torch.load_file(path), **{name.replace("__", "."): new for name, new in changes.items()}}
    safetensors.torch.save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


@pytest.mark.parametrize("family", [family.model_type for family in families()])
@pytest.mark.parametrize(
    ("tied", "biases", "sharded", "dtype"),
    [(False, True, False, "float32"), (True, False, True, "bfloat16"), (False, False, True, "float16")],
)
def test_reads_what_transformers_loads(
    tmp_path: Path, family: str, tied: bool, biases: bool, sharded: bool, dtype: str
) -> None:
    make_checkpoint(tmp_path, family=family, tied=tied, biases=biases, sharded=sharded, dtype=dtype)
    checkpoint = open_folder(tmp_path)
    checkpoint.check()
    state = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    expected = expected_tensors(checkpoint.config)
    assert set(expected) == set(state) - ({"lm_head.weight"} if tied else set())
    for name in expected:
        values = checkpoint.read(name)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, state[name].numpy())


def test_reads_float64_and_a_range_of_rows(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, dtype="float64")
    checkpoint = open_folder(tmp_path)
    checkpoint.check()
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    np.testing.assert_array_equal(checkpoint.rows("model.embed_tokens.weight", 5, 9), stored[5:9].float().numpy())


def test_an_untied_model_needs_its_head(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, tied=True)
    edit_json(tmp_path / "config.json", tie_word_embeddings=False)
    assert "lm_head.weight is missing" in refusal(tmp_path)
    assert "tie_word_embeddings is false" in refusal(tmp_path)


def test_names_what_is_missing_misshapen_and_left_over(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    edit_weights(
        tmp_path,
        model__norm__weight=None,
        model__layers__1__mlp__up_proj__weight=torch.zeros(7, 96),
        **{"model__layers__0__self_attn__q_proj__bias": torch.zeros(192)},
    )
    message = refusal(tmp_path)
    assert "model.norm.weight is missing" in message
    assert "model.layers.1.mlp.up_proj.weight is [7, 96], the config says [160, 96] (intermediate_size)" in message
    assert "q_proj.bias is stored, but the config has no such tensor" in message


def test_a_config_with_another_width_is_told_by_its_fields(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    edit_json(tmp_path / "config.json", num_key_value_heads=3)
    assert "(num_key_value_heads * head_dim)" in refusal(tmp_path)
    edit_json(tmp_path / "config.json", num_key_value_heads=2, num_hidden_layers=40)
    assert "(num_hidden_layers is 40)" in refusal(tmp_path)
    assert "more: " in refusal(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, sharded=True)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    assert f"{shard.name}, which model.safetensors.index.json names, is not there" in refusal(tmp_path)


def test_a_whole_file_stands_before_an_index_that_was_left_there_as_in_transformers(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, sharded=True)
    for shard in tmp_path.glob("*.safetensors"):
        shard.unlink()
    whole = make_checkpoint(tmp_path / "whole", seed=1) / "model.safetensors"
    whole.rename(tmp_path / "model.safetensors")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()["model.norm.weight"]
    np.testing.assert_array_equal(open_folder(tmp_path).read("model.norm.weight"), theirs.numpy())


def test_an_index_that_names_what_its_shard_lacks(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, sharded=True)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    other = next(shard for shard in index["weight_map"].values() if shard != index["weight_map"]["model.norm.weight"])
    index["weight_map"]["model.norm.weight"] = other
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"puts model.norm.weight in {other}, which does not have it" in refusal(tmp_path)


@pytest.mark.parametrize("index", ["[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', "{"])
def test_a_broken_index(tmp_path: Path, index: str) -> None:
    make_checkpoint(tmp_path, sharded=True)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in refusal(tmp_path)


def test_a_cut_file_is_told_with_its_sizes(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert f"model.safetensors is truncated: expected {len(whole)} bytes, found {len(whole) - 100}" in refusal(tmp_path)
    path.write_bytes(whole[:500])
    assert "found 500" in refusal(tmp_path)
    path.write_bytes(whole + b"tail")
    assert "is too long" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 4096, (64).to_bytes(8, "little") + b"x" * 64])
def test_garbage_is_no_safetensors_file(tmp_path: Path, content: bytes) -> None:
    make_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in refusal(tmp_path)
    assert "not a safetensors file" in refusal(tmp_path)


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    message = refusal(tmp_path)
    assert "pytorch_model.bin" in message
    assert "never read" in message
    assert "save_pretrained" in message


def test_no_weights_and_no_config(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "neither model.safetensors nor" in refusal(tmp_path)
    (tmp_path / "config.json").unlink()
    assert "no config.json" in refusal(tmp_path)


def test_a_dtype_that_is_no_plain_float(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    edit_weights(tmp_path, model__norm__weight=torch.ones(96).to(torch.float8_e4m3fn))
    assert "model.norm.weight in model.safetensors is stored as F8_E4M3" in refusal(tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_value_that_is_not_finite_is_named_when_read(tmp_path: Path, bad: float, dtype: str) -> None:
    make_checkpoint(tmp_path, dtype=dtype)
    edit_weights(tmp_path, model__norm__weight=torch.full((96,), bad).to(getattr(torch, dtype)))
    checkpoint = open_folder(tmp_path)
    checkpoint.check()
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight in model\.safetensors holds a NaN or an infinity"):
        checkpoint.read("model.norm.weight")


def test_an_unknown_tensor(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no tensor model\.wrong"):
        open_folder(tmp_path).read("model.wrong")


def test_a_large_tensor_is_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path, dtype="bfloat16")
    whole = open_folder(tmp_path).read("model.embed_tokens.weight")
    monkeypatch.setattr("megrez.compile.checkpoint.floats.PIECE", 1000)
    np.testing.assert_array_equal(open_folder(tmp_path).read("model.embed_tokens.weight"), whole)
