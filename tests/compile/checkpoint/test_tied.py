"""Whether lm_head is the embedding: as transformers decides it from config.json and from what the files hold."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.checkpoint.tensors import expected_tensors
from megrez.runtime.errors import CheckpointError
from tests.gguf_models import make_gguf
from tests.models import make_checkpoint

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def store(folder: Path, *, embedding: torch.Tensor | None = None, head: torch.Tensor | None = None) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors |= {name: new for name, new in ((EMBEDDING, embedding), (HEAD, head)) if new is not None}
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def embedding_of(folder: Path) -> torch.Tensor:
    return safetensors.torch.load_file(folder / "model.safetensors")[EMBEDDING].clone()


def assert_as_transformers(folder: Path, *, tied: bool) -> None:
    checkpoint = open_checkpoint(str(folder))
    checkpoint.check()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    assert checkpoint.config.tie_word_embeddings is tied
    assert (HEAD in expected_tensors(checkpoint.config)) is not tied
    np.testing.assert_array_equal(checkpoint.read(EMBEDDING), model.model.embed_tokens.weight.detach().numpy())
    if not tied:
        np.testing.assert_array_equal(checkpoint.read(HEAD), model.lm_head.weight.detach().numpy())


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("last_value_only", [True, False])
def test_another_head_unties_whatever_the_config_says(tmp_path: Path, family: str, last_value_only: bool) -> None:
    make_checkpoint(tmp_path, family=family, tied=True)
    head = embedding_of(tmp_path)
    if last_value_only:
        head[-1, -1] += 1
    else:
        head = head.flip(0)
    store(tmp_path, head=head)
    assert_as_transformers(tmp_path, tied=False)


def test_an_equal_head_stays_tied_though_a_zero_has_another_sign(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, tied=True)
    embedding = embedding_of(tmp_path)
    embedding[0, 0] = 0.0
    head = embedding.clone()
    head[0, 0] = -0.0
    store(tmp_path, embedding=embedding, head=head)
    assert_as_transformers(tmp_path, tied=True)


@pytest.mark.parametrize("exact", [True, False])
def test_two_dtypes_are_compared_by_value(tmp_path: Path, exact: bool) -> None:
    make_checkpoint(tmp_path, tied=True)
    embedding = embedding_of(tmp_path)
    head = embedding.bfloat16()
    store(tmp_path, embedding=head.float() if exact else embedding, head=head)
    assert_as_transformers(tmp_path, tied=exact)


def test_the_comparison_goes_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megrez.compile.checkpoint.safetensors_file.PIECE", 1000)
    make_checkpoint(tmp_path, tied=True)
    head = embedding_of(tmp_path)
    store(tmp_path, head=head)
    assert open_checkpoint(str(tmp_path)).config.tie_word_embeddings
    head[-1, -1] += 1
    store(tmp_path, head=head)
    assert not open_checkpoint(str(tmp_path)).config.tie_word_embeddings


def test_shards_are_compared_too(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, sharded=True, seed=3)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert_as_transformers(tmp_path, tied=False)


def test_a_tied_model_may_hold_its_table_as_lm_head(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, tied=True)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors[HEAD] = tensors.pop(EMBEDDING)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    assert_as_transformers(tmp_path, tied=True)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_without_the_key_a_model_is_untied_and_needs_its_head(tmp_path: Path, family: str) -> None:
    make_checkpoint(tmp_path, family=family, tied=True)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not transformers.AutoConfig.from_pretrained(tmp_path).tie_word_embeddings
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        open_checkpoint(str(tmp_path)).check()


@pytest.mark.parametrize("key", ["tie_word_embeddings", "attention_bias", "mlp_bias"])
@pytest.mark.parametrize("value", [None, 1, "true"])
def test_a_switch_that_is_neither_true_nor_false_is_refused_as_in_transformers(
    tmp_path: Path, key: str, value: object
) -> None:
    make_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(Exception, match=f"Validation error for field '{key}'"):
        transformers.AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"{key} is .*, not true or false"):
        open_checkpoint(str(tmp_path)).check()


def test_a_head_of_another_shape_is_refused_as_in_transformers(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, tied=True)
    store(tmp_path, head=torch.zeros(3, 3))
    with pytest.raises(RuntimeError):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is \[3, 3\], the config says \[320, 96\]"):
        open_checkpoint(str(tmp_path)).check()


@pytest.mark.parametrize("tied", [True, False])
def test_of_a_gguf_the_output_tensor_decides(tmp_path: Path, tied: bool) -> None:
    path = make_gguf(tmp_path / "t.gguf", make_checkpoint(tmp_path / "hf", tied=tied))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    checkpoint = open_checkpoint(str(path))
    checkpoint.check()
    assert checkpoint.config.tie_word_embeddings is model.config.tie_word_embeddings is tied
    head = checkpoint.read(EMBEDDING if tied else HEAD)
    np.testing.assert_array_equal(head, model.lm_head.weight.detach().numpy())
