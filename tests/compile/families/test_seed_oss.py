"""Seed-OSS in the form that it is published in, beside transformers: the config, the logits, the greedy answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import transformers

from megrez.compile.checkpoint import open_checkpoint
from megrez.compile.checkpoint.tensors import expected_tensors
from megrez.compile.families.config import read_config
from megrez.engines.ort.session import open_session
from megrez.runtime.bundle import open_bundle
from megrez.runtime.model import Model
from megrez.runtime.sampling import SamplingParams
from tests.gguf_models import make_gguf
from tests.models import make_checkpoint
from tests.reference import greedy, logits

IDS = np.random.default_rng(5).integers(0, 320, 30).tolist()


@pytest.fixture
def seed_oss(tmp_path: Path) -> Path:
    """Biases on query, key and value alone, and a config.json that leaves to the family what it can."""
    folder = make_checkpoint(tmp_path / "seed", family="seed_oss", biases=True, head_dim=128)
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    fewer = ("o_proj.bias", "gate_proj.bias", "up_proj.bias", "down_proj.bias")
    kept = {name: values for name, values in tensors.items() if not name.endswith(fewer)}
    safetensors.numpy.save_file(kept, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    for field in ("attention_bias", "attention_out_bias", "mlp_bias", "head_dim"):
        del config[field]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_fields_that_the_config_leaves_out(seed_oss: Path) -> None:
    ours = read_config(json.loads((seed_oss / "config.json").read_text()))
    theirs = transformers.AutoConfig.from_pretrained(seed_oss, local_files_only=True)
    assert (ours.model_type, ours.head_dim) == ("seed_oss", theirs.head_dim)
    found = (ours.qkv_bias, ours.output_bias, ours.mlp_bias)
    assert found == (theirs.attention_bias, theirs.attention_out_bias, theirs.mlp_bias) == (True, False, False)


@pytest.mark.parametrize(
    "changes", [{"attention_bias": False, "attention_out_bias": True}, {"head_dim": None}], ids=str
)
def test_fields_that_the_config_has(seed_oss: Path, changes: dict[str, Any]) -> None:
    data = {**json.loads((seed_oss / "config.json").read_text()), **changes}
    ours, theirs = read_config(data), transformers.AutoConfig.for_model(**data)
    assert (ours.qkv_bias, ours.output_bias, ours.head_dim) == (
        theirs.attention_bias,
        theirs.attention_out_bias,
        theirs.head_dim,
    )


def test_a_bundle_computes_what_transformers_computes(seed_oss: Path, megrez_compile: Any, tmp_path: Path) -> None:
    bundle = tmp_path / "b"
    assert megrez_compile(seed_oss, "--target", "cpu-fp32", "-o", bundle, "--context", 64).code == 0
    session = open_session(open_bundle(bundle), threads=1)
    found = session.step(np.array([IDS], np.int64), np.zeros(1, np.int32), np.arange(len(IDS)))
    np.testing.assert_allclose(found, logits(seed_oss, IDS), rtol=0, atol=1e-4)
    with Model.open(bundle, threads=1, verify=True) as model:
        answer = [piece.token for piece in model.stream_ids(IDS, SamplingParams(), max_tokens=16)]
    assert answer == greedy(seed_oss, IDS, 16)


def test_a_gguf_file_holds_the_same_model(seed_oss: Path, tmp_path: Path) -> None:
    """llama.cpp calls the second norm otherwise than in Llama, and leaves the rows of Q and K as they are."""
    data = json.loads((seed_oss / "config.json").read_text())
    (seed_oss / "config.json").write_text(json.dumps({**data, "head_dim": 128}))
    stored, reference = (open_checkpoint(str(path)) for path in (make_gguf(tmp_path / "t.gguf", seed_oss), seed_oss))
    stored.check()
    assert stored.config == reference.config
    for name in expected_tensors(reference.config):
        np.testing.assert_array_equal(stored.read(name), reference.read(name))
